"""Owns the comparison of raw answers with botocore's model of ECS: clients drop what they do not know and take much
that is mistyped, so that what they parse proves little."""

import json

TYPES = {
    "string": str,
    "integer": int,
    "long": int,
    "float": (int, float),
    "double": (int, float),
    "boolean": bool,
    # Seconds since the epoch, with a fraction: version 1 of the AWS command line prints them as they come.
    "timestamp": (int, float),
    "list": list,
    "map": dict,
    "structure": dict,
}


def problems(shape, value, path="answer"):
    """What in `value` is not as the model has it; paths in front."""
    wanted = TYPES[shape.type_name]
    # To Python, True is a number.
    if not isinstance(value, wanted) or (isinstance(value, bool) and shape.type_name != "boolean"):
        return [f"{path}: {value!r} is no {shape.type_name}"]
    if shape.type_name == "structure":
        return _structure(shape, value, path)
    if shape.type_name == "list":
        return sum((problems(shape.member, one, f"{path}[{index}]") for index, one in enumerate(value)), [])
    if shape.type_name == "map":
        return sum((problems(shape.value, one, f"{path}.{key}") for key, one in value.items()), [])
    if shape.type_name == "string" and shape.enum and value not in shape.enum:
        return [f"{path}: {value!r} is none of {', '.join(shape.enum)}"]
    return []


def _structure(shape, value, path):
    found = [f"{path}.{name}: required and absent" for name in shape.required_members if name not in value]
    for name, one in value.items():
        if name not in shape.members:
            found.append(f"{path}.{name}: unknown to the model")
        else:
            found += problems(shape.members[name], one, f"{path}.{name}")
    return found


class Checker:
    """Listens to a boto3 client and judges every answer, before it is parsed."""

    # Those of the signature, which no operation declares and every AWS service has.
    COMMON_ERRORS = {"UnrecognizedClientException", "InvalidSignatureException", "UnknownOperationException"}

    def __init__(self, client):
        self.problems = []
        self.seen = set()
        client.meta.events.register("before-parse.ecs.*", self.check)

    def check(self, operation_model, response_dict, **_):
        name, status = operation_model.name, response_dict["status_code"]
        body = json.loads(response_dict["body"])
        if status == 200:
            self.seen.add(name)
            found = problems(operation_model.output_shape, body)
        else:
            found = self.error(operation_model, status, body)
        self.problems += [f"{name}: {problem}" for problem in found]

    def error(self, operation_model, status, body):
        code = body.pop("__type", None)
        shape = next((shape for shape in operation_model.error_shapes if shape.error_code == code), None)
        if shape is None:
            return [] if code in self.COMMON_ERRORS else [f"{code}: declared by no error of this operation"]
        found = [] if 400 <= status < 500 else [f"{code}: status {status}"]
        if not body.get("message"):
            found.append(f"{code}: no message")
        return found + [problem for problem in problems(shape, body, code) if not problem.startswith(f"{code}.message")]


def least(shape):
    """The smallest input that a client lets pass."""
    if shape.type_name == "structure":
        return {name: least(shape.members[name]) for name in shape.required_members}
    if shape.type_name == "string":
        return shape.enum[0] if shape.enum else "x" * max(1, shape.metadata.get("min", 1))
    if shape.type_name == "list":
        return [least(shape.member)] * max(1, shape.metadata.get("min", 0))
    others = {"integer": 1, "long": 1, "float": 1.0, "double": 1.0, "boolean": False, "map": {}, "timestamp": 0}
    return others[shape.type_name]
