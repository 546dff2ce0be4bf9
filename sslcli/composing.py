"""What Hydra and OmegaConf do for `config`: put YAML files together, values over them, and resolve what may be resolved."""

import contextlib
import copy
import functools
import os
from collections.abc import Iterator, Sequence

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from sslcli.errors import BadInput, Unsafe, printable

RESOLVERS = {"now", "oc.env"}


def chosen_of(name: str, choices: Sequence[str], own_files: bool) -> DictConfig:
    """The primary configuration `name` with these choices. `own_files`: of the tool's files alone, which stay as they are: the runs of
    one process (a curve, a scout, a sweep's check) share most choices, and reading and merging the files takes longer than all else."""
    return copy.deepcopy((_composed if own_files else _composed.__wrapped__)(name, tuple(choices)))


@functools.cache
def _composed(name: str, choices: tuple[str, ...]) -> DictConfig:
    with _told():
        return compose(name, list(choices))


def put(config: DictConfig, values: Sequence[Override]) -> None:
    """As Hydra puts values over what is chosen; its one public way would read and merge every file again."""
    with _told():
        ConfigLoaderImpl._apply_overrides_to_config(list(values), config)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(printable(str(error).split("\nSee https")[0].replace("\n", "; "))) from error


def allow_resolvers() -> None:
    """Only `${now:}` and `SSL_*` environment names. `clear_resolvers` would leave `oc.env` working, so names go one by one."""
    for name in list(BaseContainer._resolvers):
        if name not in RESOLVERS:
            OmegaConf.clear_resolver(name)
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def _environment(name: str, default: str | None = None) -> str | None:
    if not name.startswith("SSL_"):
        raise Unsafe(f"${{oc.env:{printable(name)}}}: only environment names that begin with SSL_ may be read")
    return os.environ.get(name, default)
