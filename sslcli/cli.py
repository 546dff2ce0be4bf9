"""The word after `ssl` -> its primary configuration. Help is static; errors are one line; exit codes are a contract."""

import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslcli import __version__, help
from sslcli.errors import BadInput, OutOfMemory, Preempted, Refusal, printable

VERBS = ("pretrain", "finetune", "evaluate", "export", "curve", "report", "leaks", "label-next")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    handlers = {n: signal.signal(n, _stop) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        return _dispatch([w for w in words if w != "--debug"])
    except Refusal as error:
        if debug:
            raise
        for line in str(error).splitlines()[: 1 if isinstance(error, Preempted) else None]:  # OmegaConf adds to it
            print(f"error: {printable(line, 2000)}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            print("error: out of memory; lower trainer.micro_batch_size, data.max_length or the size of the model", file=sys.stderr)
            return OutOfMemory.code
        print(f"error: internal: {type(error).__name__}: {printable(error, 500)}; --debug shows where", file=sys.stderr)
        return 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _stop(number: int, _: Any) -> None:
    """Asked to stop where there is no step to finish (the trainer puts its own handler in this one's place)."""
    raise Preempted(
        f"stopped by {signal.Signals(number).name}; the same command with resume=auto goes on from the last checkpoint, where there is one"
    )


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help.overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"ssl {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb == "completion":
        from sslcli.completion import main as complete

        return complete(rest)
    if verb not in VERBS:
        from sslcli.schema import suggest

        raise BadInput(f"{printable(verb)}: no such command{suggest(verb, (*VERBS, 'completion'))}; ssl --help lists them")
    if "-h" in rest or "--help" in rest:
        print(help.verb(verb))
        return 0
    flags, overrides = _flags(rest)
    if flags.get("multirun"):
        from sslcli.commands.sweep import sweep

        return sweep(verb, overrides, flags)
    return _run(verb.replace("-", "_"), overrides, flags, rest)


def _flags(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Options, and the rest: Hydra overrides."""
    known = {"-m": "multirun", "--multirun": "multirun", "--dry-run": "dry_run"}
    known |= {"-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose"}
    valued = {"--cfg": "cfg", "-c": "cfg", "--config-dir": "folder", "-cd": "folder", "--preview": "preview"}
    flags: dict[str, Any] = {"began": time.monotonic()}
    overrides: list[str] = []
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if word in known:
            flags[known[word]] = True
        elif name in valued:
            flags[valued[name]] = value if equals else next(waiting, None)
            if not flags[valued[name]]:
                raise BadInput(f"{name}: missing its value; ssl <command> --help shows how")
        elif word.startswith("-") and not equals:
            from sslcli.schema import suggest

            raise BadInput(f"{printable(word)}: no such option{suggest(word, (*known, *valued, '--help', '--debug'))}")
        else:
            overrides.append(word)
    if flags.get("cfg") not in (None, "job"):
        raise BadInput(f"--cfg {printable(flags['cfg'])}: only --cfg job is there: the composed configuration")
    return flags, overrides


def _run(verb: str, overrides: Sequence[str], flags: dict[str, Any], words: Sequence[str]) -> int:
    from sslcli import config

    folder = Path(flags["folder"]) if "folder" in flags else None
    composed = config.compose(verb, overrides, folder)
    if flags.get("cfg"):
        if composed.problems:
            raise BadInput("\n".join(composed.problems))
        print(config.as_yaml(composed), end="")
        return 0
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if composed.verb in ("curve", "scout"):  # several runs
        module = importlib.import_module(f"sslcli.commands.{composed.verb}")
        return getattr(module, composed.verb)(overrides, flags, composed, config.places(folder))
    tree, config_yaml = config.resumed(composed, overrides)
    from sslcli import schema
    from sslcli.commands import Call
    from sslcli.log import Screen

    function = getattr(importlib.import_module(f"sslcli.commands.{composed.verb}"), composed.verb)
    arguments = schema.check(function, tree, composed.problems, config.places(folder))
    devices = arguments["trainer"].config["devices"] if "trainer" in arguments else 1
    if devices > 1 and "RANK" not in os.environ:
        from sslcli.distributed import launch

        return launch([verb, *words, f"run.dir={tree['run']['dir']}"], devices)
    screen = Screen(flags.get("quiet", False), flags.get("verbose", False), silent=os.environ.get("RANK", "0") != "0")
    screen.result(function(Call(config_yaml, overrides, screen, flags.get("dry_run", False), flags.get("preview")), **arguments))
    return 0
