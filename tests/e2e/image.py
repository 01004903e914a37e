"""The guest's disk image: a Debian 12 server that qemu boots directly, built once and kept in a cache.

An image's folder is named after this file's content: another recipe is another image, and an image is whole
or not there. `python -m tests.e2e.image` prints the folder, building it first when it is missing.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RELEASE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
HOST = "appliance-guest"  # the name under which known_hosts holds the guest's keys
UNAVAILABLE = 77

# What a minimal installation has, and what the playbook expects of a server. No pip, no compiler, no curl.
PACKAGES = (
    *(
        "linux-image-cloud-amd64",
        "tiny-initramfs",
        "systemd",
        "systemd-sysv",
        "udev",
        "dbus",
        "kmod",
        "procps",
    ),
    *("openssh-server", "iproute2", "python3", "cryptsetup-bin", "nftables"),
    *("libtss2-esys-3.0.2-0", "libtss2-mu0", "libtss2-rc0", "libtss2-tcti-device0"),
)
# Nothing that wakes up or waits by itself: a guest lives for minutes, and timings should repeat.
MASKED = (
    *(
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
    ),
    *("e2scrub_reap.service", "systemd-pstore.service", "systemd-networkd-wait-online.service"),
    *("getty@tty1.service", "serial-getty@ttyS0.service"),
)
# Two drivers instead of an initramfs with udev: 92 KB instead of 16 MB.
INITRAMFS = """\
AUTO_MODULES=no
INCLUDE_MODULES=virtio_pci,virtio_blk
MICROCODE=no
"""
# By name and not by type: networkd would take every veth that a test makes.
NETWORK = """\
[Match]
Name=eth0
[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
SSHD = """\
UsePAM no
UseDNS no
PasswordAuthentication no
AcceptEnv no
"""


class Unavailable(Exception):
    """The guest cannot be had on this machine; the reason says what is missing."""


@dataclass(frozen=True)
class Image:
    """A built image. Guests write to overlays; the files here are never changed."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    @property
    def key(self) -> Path:
        """The private ssh key of the guest's root."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"


def cache() -> Path:
    """Where images and archives for the guest are kept."""
    if chosen := os.environ.get("APPLIANCE_E2E_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "appliance-e2e"


def ready() -> Image:
    """The image, built first when the cache has none of this recipe. Raises Unavailable.

    A second builder waits for the first; what an interrupted one left is removed by the next.
    """
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    image = Image(cache() / f"image-{recipe}")
    if image.folder.exists():
        return image
    if os.geteuid() != 0:
        raise Unavailable(
            f"no guest image in {cache()}, and building it needs root: the guest's files are root's"
        )
    with _locked(cache()):
        if not image.folder.exists():
            work = cache() / "building"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            _build(work)
            work.rename(image.folder)
    return image


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(work: Path) -> None:
    os.umask(0o022)  # the folders made here become the guest's
    image, tree, early, files = Image(work), work / "tree", work / "early", work / "files"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", HOST, "-f", image.key)
    _write(early / "etc/tiny-initramfs/tiny-initramfs.conf", INITRAMFS)
    _lay_out(files, image.key.with_suffix(".pub").read_text())
    (work / "apt.conf").write_text(_apt_settings())
    # fmt: off
    _run(
        "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}",
        f"--aptopt={work / 'apt.conf'}",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc")),
        f"--setup-hook=sync-in {early} /",
        f"--customize-hook=sync-in {files} /",
        '--customize-hook=chroot "$1" usermod --password "*" root',  # "!" would be a locked account to sshd
        '--customize-hook=chroot "$1" systemctl --quiet enable systemd-networkd.service ssh.service',
        '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap',
        RELEASE, tree, *_sources(),
    )
    # fmt: on
    shutil.copy(next(tree.glob("boot/vmlinuz-*")), image.kernel)
    shutil.copy(next(tree.glob("boot/initrd.img-*")), image.initrd)
    keys = [path.read_text().split()[:2] for path in sorted(tree.glob("etc/ssh/ssh_host_*_key.pub"))]
    image.known_hosts.write_text("".join(f"{HOST} {kind} {key}\n" for kind, key in keys))
    with image.disk.open("wb") as disk:
        disk.truncate(6 << 30)
    lazy = "lazy_itable_init=0,lazy_journal_init=0"  # else the guest's kernel does it, beside the tests
    _run("mkfs.ext4", "-q", "-F", "-L", "root", "-E", lazy, "-d", tree, image.disk)
    for done in (tree, early, files):
        shutil.rmtree(done)


def _lay_out(files: Path, public_key: str) -> None:
    """The files that make the tree a machine of its own."""
    _write(files / "etc/hostname", "guest\n")
    _write(files / "etc/hosts", "127.0.0.1 localhost guest\n")
    _write(files / "etc/fstab", "/dev/vda / ext4 defaults,noatime 0 0\n")
    _write(files / "etc/systemd/network/eth0.network", NETWORK)
    _write(files / "etc/ssh/sshd_config.d/guest.conf", SSHD)
    _write(files / "root/.ssh/authorized_keys", public_key, 0o600)
    for folder in (files / "root", files / "root/.ssh"):
        folder.chmod(0o700)
    units = files / "etc/systemd/system"
    units.mkdir(parents=True)
    for name in MASKED:
        (units / name).symlink_to("/dev/null")


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _sources() -> list[str]:
    """The mirrors from which this machine's own apt has the release; none means mmdebstrap's default ones."""
    fields = "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)"
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = {tuple(line.split()) for line in told.stdout.splitlines()}
    return [
        f"deb [signed-by={KEYRING}] {row[1]} {row[2]} {row[3]}"
        for row in sorted(rows)
        if len(row) == 4 and row[0] == "Debian" and row[2].startswith(RELEASE)
    ]


def _apt_settings() -> str:
    """Proxy and certificates of this machine's apt: mmdebstrap does not read its configuration."""
    told = subprocess.run(
        ["apt-config", "dump", "--no-empty", "--format", '%F "%v";%n', "Acquire"],
        capture_output=True,
        text=True,
        check=False,
    )
    wanted = ("Acquire::http::", "Acquire::https::", "Acquire::Retries")
    return "".join(f"{line}\n" for line in told.stdout.splitlines() if line.startswith(wanted))


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unavailable(f"{command[0]} failed ({done.returncode}):\n{done.stdout.strip()[-3000:]}")


if __name__ == "__main__":
    try:
        print(ready().folder)
    except Unavailable as reason:
        print(f"no guest: {reason}", file=sys.stderr)
        sys.exit(UNAVAILABLE)
