"""Values that a sweep file or a command line gives to a parameter, checked against its annotation."""

import json
from typing import Any

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from ndt_ray.errors import SpecError


def checked(where: str, hint: Any, value: Any) -> Any:
    """A value from YAML as its annotation wants it: lists become tuples, whole numbers floats, text nothing else.

    SpecError, starting with `where`, for one that does not fit. An annotation that says nothing about plain values
    takes all.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return value
    try:
        return adapter.validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].replace("Input should be", "must be").replace("a valid ", "a ")
        problem = problem.replace("array", "list").replace("a integer", "an integer")
        problem = problem.replace("an object", "a mapping of names to values")
        raise SpecError(f"{where}: {problem[0].lower()}{problem[1:]}, but got {value!r}") from error
