"""Command lines from frozen dataclasses: one field is one flag, with its type, default and help in one place.

A config checks its values when it is made, so that a config which exists is one that can run.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from mpi_train.runtime.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def option(
    default: Any,
    text: str | Callable[[], str],
    metavar: str | None = None,
    *,
    changes_result: bool | Callable[[Any], Any] = False,
    choices: Callable[[], Sequence[str]] | None = None,
    formerly: str | None = None,
) -> Any:
    """Declare a dataclass field that is also a flag.

    Args:
        default: Value without the flag.
        text: One line of help; a function is called when the help is printed.
        metavar: Name of the value in the help.
        changes_result: True for an option that identifies a run: a checkpoint of a run with another value is
            not resumed. A function maps the value to the part of it that counts.
        choices: Values that are accepted, asked for when the command line is parsed. A ``Literal`` type does
            the same for values that are known in advance.
        formerly: Old name of the flag, which is refused with the new one.
    """
    metadata = {"help": text, "metavar": metavar, "changes_result": changes_result, "choices": choices}
    return dataclasses.field(default=default, metadata={**metadata, "formerly": formerly})


def variant(selector: str, kinds: Callable[[], Mapping[str, type[DataclassInstance]]]) -> Any:
    """Declare a field that holds the options of what another field selects, or None if that has none.

    ``kinds`` returns a dataclass of options for each value of the field ``selector`` that has any.
    """
    return dataclasses.field(default=None, metadata={"selector": selector, "kinds": kinds})


def flag_of(name: str) -> str:
    """Return the flag of the field ``name``."""
    return "--" + name.replace("_", "-")


def at_least(flag: str, value: int, smallest: int) -> None:
    """Raise ``UsageError`` if ``value`` is below ``smallest``."""
    if value < smallest:
        raise UsageError(f"{flag}: expected at least {smallest}. Got: {value}")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help formatter that shows each default; a help text explains a default of None itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Argument parser that raises ``UsageError`` instead of printing, and suggests near names.

    Under MPI every rank parses the same words, and only one of them may print.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **kwargs)
        self.renamed: dict[str, str] = {}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            if word in self.renamed:
                raise UsageError(f"expected {self.renamed[word]}. Got: {word}, its old name")
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(word, flags, n=3, cutoff=0.7)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(
                f"unknown argument. Got: {' '.join(unknown)}.{hint}", remedy=f"{self.prog} --help"
            )
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy=f"{self.prog} --help")

    def add_options(self, kind: type[DataclassInstance], *, title: str | None = None) -> None:
        """Add one flag for each field of ``kind``; with a ``title``, as a group of their own in the help."""
        group = self.add_argument_group(title) if title else self
        for field in dataclasses.fields(kind):
            if "kinds" not in field.metadata:
                self._add_option(group, kind, field, field.default)
                continue
            for name, options in field.metadata["kinds"]().items():
                own = self.add_argument_group(f"options of {flag_of(field.metadata['selector'])} {name}")
                for each in dataclasses.fields(options):
                    # A flag that is left out leaves no trace, so that one which was given is noticed.
                    self._add_option(own, options, each, argparse.SUPPRESS)

    def _add_option(
        self,
        group: argparse._ActionsContainer,
        kind: type[DataclassInstance],
        field: dataclasses.Field[Any],
        default: Any,
    ) -> None:
        flag, hint, meta = flag_of(field.name), typing.get_type_hints(kind)[field.name], field.metadata
        text = meta["help"]() if callable(meta["help"]) else meta["help"]
        if meta["formerly"]:
            self.renamed[meta["formerly"]] = flag
        if default is argparse.SUPPRESS:
            text = f"{text} (default: {field.default})"
        if hint is bool:
            group.add_argument(flag, action="store_true", default=default, help=text)
            return
        if typing.get_origin(hint) is not Literal:  # ``int | None`` is read as int
            hint = next((arg for arg in typing.get_args(hint) if arg is not type(None)), hint)
        known = typing.get_args(hint)
        choices = tuple(meta["choices"]()) if meta["choices"] else known or None
        metavar, reader = None if choices else meta["metavar"], str if known else hint
        group.add_argument(flag, default=default, type=reader, choices=choices, metavar=metavar, help=text)


def parse(kind: type[Config], argv: Sequence[str] | None = None, *, description: str, prog: str) -> Config:
    """Read a ``kind`` from the command line.

    Raises:
        UsageError: an unknown flag, a value outside its range, or an option of what was not selected.
        SystemExit: after ``--help``.
    """
    parser = Parser(prog=prog, description=description)
    parser.add_options(kind)
    return from_values(kind, vars(parser.parse_args(sys.argv[1:] if argv is None else argv)))


def from_values(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Make a ``kind`` from parsed flags; ``values`` may hold others too. Raises ``UsageError``."""
    own: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if "kinds" not in field.metadata:
            own[field.name] = values[field.name]
            continue
        selector = field.metadata["selector"]
        for name, options in field.metadata["kinds"]().items():
            given = {f.name: values[f.name] for f in dataclasses.fields(options) if f.name in values}
            if name == values[selector]:
                own[field.name] = options(**given)
            elif given:
                flag, chosen = flag_of(next(iter(given))), f"{flag_of(selector)} {values[selector]}"
                raise UsageError(
                    f"{flag} applies to {flag_of(selector)} {name} only. Got: {chosen}",
                    remedy=f"{flag_of(selector)} {name}, or leave {flag} out",
                )
    return kind(**own)


def _options(config: DataclassInstance) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Iterate over the fields and values of ``config``, with those of selected options in their place."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "kinds" not in field.metadata:
            yield field, value
        elif value is not None:
            yield from _options(value)


def as_flags(config: DataclassInstance) -> list[str]:
    """Return the command line that makes an equal config, with only what differs from the defaults."""
    usual = {field.name: value for field, value in _options(type(config)())}
    flags: list[str] = []
    for field, value in _options(config):
        # Some defaults follow from other settings, so the config without flags is compared as well.
        if value != usual.get(field.name, field.default):
            flags += [flag_of(field.name)] if value is True else [flag_of(field.name), str(value)]
    return flags


def as_dict(config: DataclassInstance) -> dict[str, Any]:
    """Return all options of ``config`` by name, as JSON can hold them."""
    return {field.name: _plain(value) for field, value in _options(config)}


def identity(config: DataclassInstance) -> dict[str, Any]:
    """Return the options of ``config`` that identify a run: those marked with ``changes_result``."""
    found = {}
    for field, value in _options(config):
        mark = field.metadata["changes_result"]
        if mark:
            found[field.name] = _plain(mark(value) if callable(mark) else value)
    return found


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
