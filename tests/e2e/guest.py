"""A Debian 12 guest under qemu: boot, talk to it over ssh, pull its plug, boot it again on the same disks.

Without KVM: everything in the guest is 5 to 20 times slower than on the machine itself. The guest reaches
nothing outside of itself; this machine reaches into it through forwarded ports of loopback. No process
outlives its guest object, nor this process: the kernel ends them when it is killed.
"""

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.e2e.image import HOST, Image
from tests.running import free_port

BOOT_SECONDS = 240.0
STOP_SECONDS = 180.0
COMMAND_SECONDS = 300.0
KERNEL = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off panic=-1"
# qemu's write-back cache with flushes honoured: what the guest has flushed survives a kill of qemu.
DURABLE = {"direct": False, "no-flush": False}


class GuestFailed(Exception):
    """The guest did not do what a test needs before it can check anything; the text holds its console."""


class CommandFailed(AssertionError):
    """A command in the guest ended with another exit code than 0."""


@dataclass(frozen=True)
class Done:
    """A command that ended in the guest."""

    code: int
    out: str
    error: str


@dataclass
class Hardware:
    """What a guest is made of. `disks` are empty, by size such as 4G: each /dev/disk/by-id/virtio-NAME."""

    memory_mib: int = 2048
    tpm: bool = False
    ports: tuple[int, ...] = ()
    disks: dict[str, str] = field(default_factory=dict)


class Guest:
    """One guest with its disks in `folder`, as a context: running inside, all of it gone after."""

    def __init__(self, image: Image, folder: Path, hardware: Hardware) -> None:
        self.folder = folder
        self._image = image
        self._hardware = hardware
        self._ports = {port: free_port() for port in (22, *hardware.ports)}
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        overlay = ("-b", self._image.disk, "-F", "raw")
        _host("qemu-img", "create", "-q", "-f", "qcow2", *overlay, self._disk("root"))
        for name, size in self._hardware.disks.items():
            _host("qemu-img", "create", "-q", "-f", "qcow2", self._disk(name), size)
        self.boot()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Its life.

    def boot(self) -> None:
        """Switch it on and wait until ssh answers. Raises GuestFailed with the end of the console."""
        try:
            if self._hardware.tpm:
                self._start_tpm()
            self._launch(*self._qemu())
            self._wait_for_ssh()
        except BaseException:
            self.cut()
            raise

    def cut(self) -> None:
        """Pull the plug: what the guest has not flushed to its disks is gone."""
        for child in reversed(self._children):
            child.kill()
            child.wait()
        self._children.clear()
        (self.folder / "ssh").unlink(missing_ok=True)

    def shut_down(self) -> None:
        """An orderly shutdown; returns when the machine is off."""
        self._leave("poweroff")

    def reboot(self) -> None:
        """An orderly reboot; returns when ssh answers again."""
        self._leave("reboot")
        self.boot()

    def forget_tpm(self) -> None:
        """Another TPM: everything the old one held is gone. The guest must be off."""
        assert not self._children
        shutil.rmtree(self.folder / "tpm")

    # Ways into it.

    def run(
        self, command: str, *, seconds: float = COMMAND_SECONDS, check: bool = True, text: str = ""
    ) -> Done:
        """A shell line as root, with `text` on its stdin. Raises CommandFailed unless it ends with 0."""
        done = subprocess.run(
            [*self.ssh_command(), command],
            cwd=self.folder,
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check and done.returncode:
            raise CommandFailed(
                f"{command}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            )
        return Done(done.returncode, done.stdout, done.stderr)

    def output(self, command: str) -> str:
        """What a shell line prints, without the space around it."""
        return self.run(command).out.strip()

    def clock(self) -> float:
        """Seconds since 1970, by the guest's clock."""
        return float(self.output("date +%s.%N"))

    def python(self, program: str, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        """What a Python program prints, run as root by the guest's own Python."""
        return self.run(shlex.join(["python3", "-", *arguments]), text=program, seconds=seconds).out

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a file of this machine into the guest."""
        line = ["scp", "-F", "none", "-q", "-p", *self.ssh_options(), f"-oPort={self._ports[22]}"]
        _host(*line, "--", source.absolute(), f"root@127.0.0.1:{target}", folder=self.folder)

    def write(self, path: str, text: str) -> None:
        """Replace a file of the guest."""
        self.run(f"cat >{shlex.quote(path)}", text=text)

    def port(self, port: int) -> int:
        """The port of this machine's loopback that leads to one of the guest's."""
        return self._ports[port]

    def ssh_options(self) -> list[str]:
        """For ssh, scp and Ansible: one connection per boot is kept, a new one costs a second."""
        image = self._image
        return [
            *(
                f"-oIdentityFile={image.key}",
                f"-oUserKnownHostsFile={image.known_hosts}",
                f"-oHostKeyAlias={HOST}",
            ),
            *("-oStrictHostKeyChecking=yes", "-oIdentitiesOnly=yes", "-oBatchMode=yes", "-oLogLevel=ERROR"),
            *("-oConnectTimeout=30", "-oServerAliveInterval=15", "-oServerAliveCountMax=8"),
            *("-oControlMaster=auto", "-oControlPersist=yes", f"-oControlPath={self.folder / 'ssh'}"),
        ]

    def ssh_command(self) -> list[str]:
        """The command line that leads into the guest."""
        return ["ssh", "-F", "none", *self.ssh_options(), f"-oPort={self._ports[22]}", "root@127.0.0.1"]

    def inventory(self, **variables: object) -> dict[str, object]:
        """An Ansible inventory with the guest as its only host, and these variables."""
        host = {
            "ansible_host": "127.0.0.1",
            "ansible_port": self._ports[22],
            "ansible_user": "root",
            "ansible_ssh_args": shlex.join(["-F", "none", *self.ssh_options()]),
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        return {"all": {"hosts": {"guest": host | variables}}}

    def console(self) -> str:
        """The end of what the guest and qemu have said."""
        parts = [self.folder / "console.log", self.folder / "qemu.log"]
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in parts if path.exists())

    # How it is done.

    def _disk(self, name: str) -> Path:
        return self.folder / f"{name}.qcow2"

    def _leave(self, verb: str) -> None:
        with suppress(CommandFailed):  # the connection may end first
            self.run(f"systemctl {verb}")
        try:
            self._children[-1].wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise GuestFailed(f"no {verb} after {STOP_SECONDS:.0f} s\n{self.console()}") from None
        self.cut()

    def _start_tpm(self) -> None:
        (self.folder / "tpm").mkdir(exist_ok=True)
        control = "type=unixio,path=tpm.sock"
        self._launch("swtpm", "socket", "--tpm2", "--tpmstate", "dir=tpm", "--ctrl", control, "--terminate")
        for _ in attempts(30):
            if (self.folder / "tpm.sock").exists():
                return
        raise GuestFailed(f"swtpm does not start\n{self.console()}")

    def _launch(self, *command: str) -> None:
        """Start a child that the kernel kills with this process; its folder is the guest's."""
        with (self.folder / "qemu.log").open("ab") as log:
            child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which then ends the guest in its order
            )
        self._children.append(child)

    def _qemu(self) -> Sequence[str]:
        forwards = ",".join(f"hostfwd=tcp:127.0.0.1:{own}-:{port}" for port, own in self._ports.items())
        # fmt: off
        command = [
            "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-machine", "q35",
            "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off", "-smp", "2",
            "-m", str(self._hardware.memory_mib), "-rtc", "base=utc",
            "-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd), "-append", KERNEL,
            "-serial", "file:console.log",
            "-netdev", f"user,id=net,restrict=on,{forwards}", "-device", "virtio-net-pci,netdev=net",
            "-device", "virtio-rng-pci",
        ]
        # fmt: on
        for name in ("root", *self._hardware.disks):
            file = {"driver": "file", "filename": self._disk(name).name, "cache": DURABLE}
            backend = {
                "driver": "qcow2",
                "node-name": name,
                "discard": "unmap",
                "cache": DURABLE,
                "file": file,
            }
            device = {"driver": "virtio-blk-pci", "drive": name, "serial": name}
            command += ["-blockdev", json.dumps(backend), "-device", json.dumps(device)]
        if self._hardware.tpm:
            command += ["-chardev", "socket,id=tpm,path=tpm.sock", "-tpmdev", "emulator,id=tpm,chardev=tpm"]
            command += ["-device", "tpm-crb,tpmdev=tpm"]
        return command

    def _wait_for_ssh(self) -> None:
        qemu = self._children[-1]
        for _ in attempts(BOOT_SECONDS):
            if qemu.poll() is not None:
                raise GuestFailed(f"qemu ended with {qemu.returncode}\n{self.console()}")
            with suppress(subprocess.TimeoutExpired):
                if self.run("true", seconds=60, check=False).code == 0:
                    return
        raise GuestFailed(f"no ssh after {BOOT_SECONDS:.0f} s\n{self.console()}")


def attempts(seconds: float) -> Iterator[None]:
    """Again and again, with a short pause, until the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.3)


def _host(*command: str | Path, folder: Path | None = None) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise GuestFailed(f"{command[0]}: exit code {done.returncode}\n{done.stderr}")
