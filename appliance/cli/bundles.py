"""`bundle`: making and signing without a daemon, installing through the socket."""

import argparse
import os
import sys
from pathlib import Path

from appliance.cli.client import Operator, client, form, segment
from appliance.cli.output import Document, Output, Refused, table
from appliance.cli.words import Words


def add(words: Words) -> None:
    """The verbs of bundles."""
    bundles = words.noun("bundle", "the models that recognise and embed")
    build = bundles.verb("build", _build, "make a bundle from an installed data package")
    build.add_argument("name", help="efficientnet-lite0, -lite1 or -lite2, each more precise and slower")
    build.add_argument(
        "--to", type=Path, required=True, metavar="PATH", help="a folder that does not exist yet"
    )
    key = bundles.verb("key", _key, "make a key to sign bundles with; prints its public half")
    key.add_argument("file", type=Path, help="a file that does not exist yet, for the private half")
    sign = bundles.verb("sign", _sign, "sign a bundle, so that whoever trusts the key may install it")
    sign.add_argument("folder", type=Path)
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="of `appliance bundle key`")
    install = bundles.verb("install", client(_install), "verify a bundle and install it")
    install.add_argument(
        "path",
        type=Path,
        help="a bundle (folder, .tar, .tar.zst), a Hugging Face export, or the ONNX file of a YOLO detector",
    )
    install.add_argument("--customer", action="append", metavar="CUSTOMER", help="who alone may use it")
    install.add_argument("--name", help="of an export's bundle; default: the folder's or file's")
    install.add_argument("--no-activate", action="store_true", help="not even the first version of its name")
    bundles.verb("list", client(_list), "installed bundles")
    bundles.verb("verify", client(_verify), "read every file of every installed bundle again")
    for name, run, summary in (
        ("activate", _activate, "have a version answer for its task and routes"),
        ("remove", _remove, "take a version away, its files included"),
    ):
        change = bundles.verb(name, client(run), summary)
        change.add_argument("name")
        change.add_argument("version")


def _build(arguments: argparse.Namespace) -> Output:
    from appliance.recognition import starter

    target = arguments.to.absolute()
    print(f"building {arguments.name}", file=sys.stderr)
    try:
        starter.build(arguments.name, target)
    except ImportError as error:
        message = f"{error}; the data packages come with extras: pip install 'appliance[starter,sisters]'"
        raise Refused("not_installed", message) from error
    except OSError as error:
        raise Refused("storage_failed", f"{target}: {error.strerror}") from error
    return Output({"name": arguments.name, "path": str(target)}, f"{arguments.name} built at {target}")


def _key(arguments: argparse.Namespace) -> Output:
    from appliance.vault import create_signing_key, public_key

    private = create_signing_key()
    try:
        with open(arguments.file, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(private)
    except OSError as error:
        raise Refused("failed", f"{arguments.file}: {error.strerror}") from error
    public = public_key(private)
    return Output({"file": str(arguments.file), "public_key": public}, public)


def _sign(arguments: argparse.Namespace) -> Output:
    from appliance.recognition import manifest, trust

    try:
        verified = manifest.verify(arguments.folder)
        signature = trust.signature(arguments.key.read_bytes(), verified.digest)
        (arguments.folder / manifest.SIGNATURE).write_bytes(signature)
    except OSError as error:
        raise Refused("failed", f"{error.filename}: {error.strerror}") from error
    made = verified.manifest
    return Output({"name": made.name, "version": made.version}, f"{made.name} {made.version} is signed")


async def _install(operator: Operator, arguments: argparse.Namespace) -> Output:
    from aiohttp import ClientError

    from appliance.errors import InvalidInput
    from appliance.recognition import staging

    path = arguments.path.absolute()
    query = [("customer", await operator.customer_id(one)) for one in arguments.customer or ()]
    query += [("activate", "false")] if arguments.no_activate else []
    parts = form(staging.from_path(path, arguments.name))
    try:
        made = await operator.call("POST", "/bundles", query=query, parts=parts)
    except InvalidInput as refusal:
        raise Refused("bad_request", str(refusal)) from refusal
    except ClientError as error:
        if isinstance(error.__cause__, InvalidInput):
            raise Refused("bad_request", str(error.__cause__)) from error
        raise
    except Refused as refusal:
        raise Refused(refusal.error, f"{path}: {refusal}") from refusal
    waits = "" if made["active"] else "; it answers once it is activated"
    text = f"{made['name']} {made['version']} is installed as task {made['task']}{waits}"
    return Output(made, text + _elsewhere(made))


async def _list(operator: Operator, _: argparse.Namespace) -> Output:
    answer = await operator.call("GET", "/bundles")
    return Output(
        answer, table(answer["bundles"], "name", "version", "kind", "active", "task", "routes", "fault")
    )


async def _verify(operator: Operator, _: argparse.Namespace) -> Output:
    answer = await operator.call("GET", "/bundles/verification")
    damaged = [f"{one['name']} {one['version']}: {one['fault']}" for one in answer["bundles"] if one["fault"]]
    if damaged:
        raise Refused("damaged", "; ".join(damaged))
    return Output(answer, f"{len(answer['bundles'])} bundles are as they were installed")


async def _activate(operator: Operator, arguments: argparse.Namespace) -> Output:
    name, version = segment(arguments.name, "bundle"), segment(arguments.version, "bundle")
    made = await operator.call("POST", f"/bundles/{name}/{version}/activate")
    return Output(made, f"{made['name']} {made['version']} answers from now on" + _elsewhere(made))


def _elsewhere(made: Document) -> str:
    """Which of its routes another bundle serves, and how to change that."""
    lines = []
    for route, pin in made["shadowed"].items():
        other = pin.replace("@", " ")
        lines.append(f"\n{route} is served by {other}, installed before: `bundle remove {other}` changes it")
    return "".join(lines)


async def _remove(operator: Operator, arguments: argparse.Namespace) -> Output:
    name, version = segment(arguments.name, "bundle"), segment(arguments.version, "bundle")
    await operator.call("DELETE", f"/bundles/{name}/{version}")
    return Output({"name": name, "version": version, "removed": True}, f"{name} {version} is removed")
