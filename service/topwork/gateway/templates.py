"""Path templates of google.api.http rules (AIP-127), such as ``/v1/{model=models/*}:classify``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from google.api import http_pb2

_VARIABLE = re.compile(r"\{([a-z_.]+)=([^}]+)\}")


OTHER_RULES = {
    "google.longrunning.Operations.WaitOperation": http_pb2.HttpRule(
        post="/v1/{name=operations/*}:wait", body="*"
    ),
}
"""Rules of rpcs that have no annotation, as ``google.api.Http`` in a service's configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A field of the request that the path sets."""

    field: str
    """Path of the field, such as ``config.model``."""
    value: str
    """Its value with the parameters of the path in braces, such as ``models/{model}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A parsed path template."""

    path: str
    """The path as in OpenAPI, such as ``/v1/models/{model}:classify``."""
    parameters: tuple[str, ...]
    """The names in braces in ``path``."""
    variables: tuple[Variable, ...]

    def fields(self, parameters: Mapping[str, str]) -> dict[str, str]:
        """Return the value of each field from the values of the parameters."""
        return {variable.field: variable.value.format(**parameters) for variable in self.variables}


def parse(template: str) -> Template:
    """Parse a template. Each ``*`` and ``**`` becomes a parameter named after its collection."""
    names: list[str] = []
    variables: list[Variable] = []

    def expand(match: re.Match[str]) -> str:
        field, pattern = match.groups()
        before = ""
        segments = []
        for segment in pattern.split("/"):
            if segment in {"*", "**"}:
                names.append(before.removesuffix("s"))
                segments.append(f"{{{names[-1]}}}")
            else:
                segments.append(segment)
            before = segment
        value = "/".join(segments)
        variables.append(Variable(field=field, value=value))
        return value

    path = _VARIABLE.sub(expand, template)
    return Template(path=path, parameters=tuple(names), variables=tuple(variables))
