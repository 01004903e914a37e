#!/usr/bin/python
"""A LUKS2 volume with ext4 on one device, opened and mounted at every boot.

Every step asks first whether it is done, so that an interrupted run is finished by the next one. Nothing is
ever removed: a device that holds anything is refused, and the label says whether the volume is finished.
"""

import ctypes
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: luks2_volume
short_description: A LUKS2 volume with ext4, opened and mounted at every boot
description:
  - Formats an empty block device as LUKS2, makes ext4 in it, and names both in /etc/crypttab and /etc/fstab.
  - Refuses a device that holds anything else than the volume that it made itself.
options:
  device: {description: The block device., type: path, required: true}
  name: {description: LUKS label and name of the mapping., type: str, required: true}
  mount: {description: Where it is mounted., type: path, required: true}
  unlock: {description: What opens it at boot., type: str, choices: [keyfile, tpm2], required: true}
  key_file: {description: The key file; made when it does not exist., type: path, required: true}
  passphrase: {description: Opens the volume too., type: str}
author: The appliance's makers
"""

KEY_BYTES = 64
EDGE_BYTES = 16 << 20  # looked at from both ends of the device
PASSPHRASE_CHARACTERS = 20
MOUNT_OPTIONS = "nodev,nosuid,noexec,noatime,nofail"  # noatime: a read need not wait for a write
TOOLS = ("cryptsetup", "mkfs.ext4", "blkid", "lsblk")
# systemd loads these when it talks to a TPM.
TPM_LIBRARIES = (
    "libtss2-esys.so.0",
    "libtss2-rc.so.0",
    "libtss2-mu.so.0",
    "libtss2-tcti-device.so.0",
)


class Volume:
    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        wanted = module.params
        self.device = wanted["device"]
        self.name = wanted["name"]
        self.draft = f"{self.name}-unfinished"
        self.mount = Path(wanted["mount"])
        self.tpm2 = wanted["unlock"] == "tpm2"
        self.key_file = Path(wanted["key_file"])
        self.passphrase = wanted["passphrase"]
        self.mapping = f"/dev/mapper/{self.name}"
        self.steps: list[str] = []

    # What is there.

    def examine(self) -> str:
        """The label of our volume on the device, "" for none; refuses what is neither ours nor empty."""
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            needed = "apt install cryptsetup-bin e2fsprogs util-linux"
            self.refuse(f"{', '.join(missing)}: not installed on the server; on Debian: {needed}")
        if self.tpm2:
            self.examine_tpm()
        if self.passphrase and len(self.passphrase) < PASSPHRASE_CHARACTERS:
            self.refuse(f"luks_volume_recovery_passphrase is shorter than {PASSPHRASE_CHARACTERS} characters")
        if not Path(self.device).is_block_device():
            self.refuse(f"{self.device} is not a block device of this server")
        self.examine_place()
        signature = self.signature(self.device)
        label = signature.get("LABEL", "")
        if signature.get("TYPE") == "crypto_LUKS" and label in {self.name, self.draft}:
            self.examine_own(signature.get("VERSION", ""))
            return label
        self.examine_empty(signature)
        return ""

    def examine_tpm(self) -> None:
        if not Path("/dev/tpmrm0").exists():
            self.refuse("luks_volume_unlock is tpm2, and the server has no TPM 2.0 (/dev/tpmrm0)")
        try:
            for library in TPM_LIBRARIES:
                ctypes.CDLL(library)
        except OSError as error:
            needed = "apt install libtss2-esys-3.0.2-0 libtss2-mu0 libtss2-rc0 libtss2-tcti-device0"
            self.refuse(f"luks_volume_unlock is tpm2, and {error}; on Debian: {needed}")

    def examine_place(self) -> None:
        """Refuses a mapping or a mount point that something else has taken."""
        if self.opened():
            mapped = Path("/sys/class/block", Path(self.mapping).resolve().name, "slaves")
            below = {slave.name for slave in mapped.iterdir()}
            if below != {Path(self.device).resolve().name}:
                self.refuse(f"{self.mapping} is open already, on {', '.join(below)} and not on {self.device}")
        if self.mount.is_mount():
            if not self.opened() or self.mount.stat().st_dev != Path(self.mapping).stat().st_rdev:
                self.refuse(f"something else than the volume is mounted at {self.mount}; unmount it first")
        elif self.mount.is_dir() and any(self.mount.iterdir()):
            self.refuse(f"{self.mount} holds files that the volume would hide; move them away first")

    def examine_own(self, version: str) -> None:
        if version != "2":
            self.refuse(f"{self.device} is LUKS {version}; LUKS2 is expected")
        if self.opened():
            return
        if self.tpm2:
            if not self.passphrase and not self.enrolled():
                self.refuse(
                    f"{self.device}: the TPM holds no key yet; luks_volume_recovery_passphrase is needed once"
                )
        elif not self.key_file.exists():
            self.refuse(
                f"{self.device} is a volume of an appliance, and its key {self.key_file} is gone: restore it"
            )
        elif self.command(
            "cryptsetup", "open", "--test-passphrase", f"--key-file={self.key_file}", self.device
        ):
            self.refuse(f"{self.device} is a volume of an appliance that {self.key_file} does not open")

    def examine_empty(self, signature: dict[str, str]) -> None:
        found = signature.get("TYPE") or signature.get("PTTYPE")
        if found:
            label = f' "{signature["LABEL"]}"' if signature.get("LABEL") else ""
            kind = "holds" if signature.get("TYPE") else "has a partition table:"
            self.refuse(f"{self.device} {kind} {found}{label}; {self.advice()}")
        listed = json.loads(
            self.do("lsblk", "--json", "--paths", "--output", "NAME,MOUNTPOINTS", self.device)
        )
        for entry in listed["blockdevices"]:
            if entry.get("children") or any(entry["mountpoints"]):
                self.refuse(f"{self.device} is in use: {json.dumps(entry)}; {self.advice()}")
        with Path(self.device).open("rb") as device:
            size = device.seek(0, os.SEEK_END)
            for start in (0, max(0, size - EDGE_BYTES)):
                device.seek(start)
                if device.read(EDGE_BYTES).strip(b"\0"):
                    self.refuse(f"{self.device} holds data of no known kind; {self.advice()}")
        if self.tpm2 and not self.passphrase:
            self.refuse(
                "luks_volume_recovery_passphrase is missing: with tpm2 a new mainboard is a lost volume"
            )
        if self.key_file.exists() and not self.tpm2 and self.key_file.stat().st_size < KEY_BYTES:
            self.refuse(f"{self.key_file} exists and is shorter than {KEY_BYTES} bytes")

    def advice(self) -> str:
        emptying = f"wipefs --all {self.device}; blkdiscard {self.device}"
        return f"name an empty device, or empty this one for good with: {emptying}"

    def signature(self, device: str) -> dict[str, str]:
        """What blkid finds on the device itself, past every cache; empty for nothing."""
        code, text, error = self.module.run_command(["blkid", "--probe", "--output", "export", device])
        if code == 2:
            return {}
        if code != 0:
            self.refuse(f"{device} holds several things at once, or cannot be read: {error.strip() or code}")
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def opened(self) -> bool:
        return Path(self.mapping).exists()

    def enrolled(self) -> bool:
        return any(token["type"] == "systemd-tpm2" for token in self.metadata("tokens"))

    def metadata(self, part: str) -> list[dict[str, str]]:
        dump = self.do("cryptsetup", "luksDump", "--dump-json-metadata", self.device)
        return list(json.loads(dump).get(part, {}).values())

    # What is made.

    def make(self, label: str) -> None:
        if not self.tpm2 and not self.key_file.exists():
            self.step(f"key file {self.key_file}", self.make_key)
        if not label:
            self.step(f"LUKS2 on {self.device}", self.format)
        if self.passphrase and not self.tpm2 and not (label and len(self.metadata("keyslots")) > 1):
            self.step("recovery passphrase", self.add_passphrase)
        if self.tpm2 and not (label and self.enrolled()):
            self.step("key in the TPM", self.enrol)
        if self.line("/etc/crypttab", self.name, 0, self.crypttab):
            self.step(
                "/etc/crypttab", lambda: self.write_line("/etc/crypttab", self.name, 0, self.crypttab())
            )
        if not self.opened():
            self.step(f"open {self.mapping}", self.open)
        if label != self.name:
            self.step(f"ext4 on {self.mapping}", self.make_filesystem)
        if self.line("/etc/fstab", str(self.mount), 1, self.fstab):
            self.step("/etc/fstab", lambda: self.write_line("/etc/fstab", str(self.mount), 1, self.fstab()))
        if not self.mount.is_mount():
            self.step(f"mount {self.mount}", self.mount_it)

    def step(self, what: str, act: Callable[[], None]) -> None:
        self.steps.append(what)
        if not self.module.check_mode:
            act()

    def make_key(self) -> None:
        """Durable before anything is encrypted with it."""
        self.key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with os.fdopen(fd, "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.key_file.parent)

    def format(self) -> None:
        words = ["cryptsetup", "luksFormat", "--batch-mode", "--type=luks2", f"--label={self.draft}"]
        if self.tpm2:
            self.do(*words, "--key-file=-", self.device, stdin=self.passphrase)
        else:
            self.do(*words, f"--key-file={self.key_file}", self.device)

    def add_passphrase(self) -> None:
        words = ["cryptsetup", "luksAddKey", f"--key-file={self.key_file}", self.device, "-"]
        self.do(*words, stdin=self.passphrase)

    def enrol(self) -> None:
        """PCR 7 (secure boot policy) as systemd-cryptenroll chooses by itself."""
        self.module.run_command_environ_update = {"PASSWORD": self.passphrase}
        self.do("systemd-cryptenroll", "--tpm2-device=auto", self.device)
        self.module.run_command_environ_update = {}

    def open(self) -> None:
        """With another TPM than before (a new mainboard), the passphrase lets that one have a key too."""
        unit = f"systemd-cryptsetup@{self.name}.service"
        self.do("systemctl", "daemon-reload")
        if self.tpm2 and self.passphrase and self.command("systemctl", "start", unit):
            # Two calls: enrolling says "already enrolled" as long as the old TPM's slot is there.
            self.do("systemd-cryptenroll", "--wipe-slot=tpm2", self.device)
            self.enrol()
        self.do("systemctl", "start", unit)

    def crypttab(self) -> str:
        identity = self.do("cryptsetup", "luksUUID", self.device).strip()
        if self.tpm2:
            return f"{self.name} UUID={identity} none luks,nofail,tpm2-device=auto,headless=true"
        return f"{self.name} UUID={identity} {self.key_file} luks,nofail"

    def fstab(self) -> str:
        # nofail: a server whose data disk is gone still boots, so that somebody can look.
        return f"{self.mapping} {self.mount} ext4 {MOUNT_OPTIONS} 0 2"

    def make_filesystem(self) -> None:
        """From the last line on nothing is ever made here again, whatever the device looks like then."""
        self.do("mkfs.ext4", "-q", "-L", self.name, self.mapping)
        self.do("sync", self.mapping)
        self.do("cryptsetup", "config", self.device, "--label", self.name)

    def mount_it(self) -> None:
        self.mount.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.do("systemctl", "daemon-reload")
        self.do(
            "systemctl",
            "start",
            self.do("systemd-escape", "--path", "--suffix=mount", str(self.mount)).strip(),
        )

    # Lines of crypttab and fstab.

    def line(self, file: str, key: str, field: int, wanted: Callable[[], str]) -> bool:
        """Whether the line of this key must be written."""
        present = [line.split() for line in self.lines(file) if self.is_of(line, key, field)]
        if not present:
            return True
        return self.signature(self.device) != {} and present != [wanted().split()]

    def lines(self, file: str) -> list[str]:
        return Path(file).read_text().splitlines() if Path(file).exists() else []

    def is_of(self, line: str, key: str, field: int) -> bool:
        fields = line.split()
        return len(fields) > field and not line.startswith("#") and fields[field] == key

    def write_line(self, file: str, key: str, field: int, line: str) -> None:
        kept = [other for other in self.lines(file) if not self.is_of(other, key, field)]
        draft = Path(f"{file}.draft")
        draft.write_text("\n".join([*kept, line, ""]))
        draft.chmod(0o644)
        self.module.atomic_move(str(draft), file)

    # Commands.

    def command(self, *words: str) -> int:
        return int(self.module.run_command([*words])[0])

    def do(self, *words: str, stdin: str | None = None) -> str:
        code, text, error = self.module.run_command([*words], data=stdin, binary_data=True)
        if code != 0:
            self.refuse(f"{' '.join(words)}: {error.strip() or text.strip() or code}")
        return str(text)

    def refuse(self, reason: str) -> None:
        self.module.fail_json(
            msg=reason, changed=bool(self.steps) and not self.module.check_mode, steps=self.steps
        )


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "mount": {"type": "path", "required": True},
            "unlock": {"type": "str", "choices": ["keyfile", "tpm2"], "required": True},
            "key_file": {"type": "path", "required": True, "no_log": False},
            "passphrase": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    volume = Volume(module)
    volume.make(volume.examine())
    module.exit_json(changed=bool(volume.steps), steps=volume.steps)


if __name__ == "__main__":
    main()
