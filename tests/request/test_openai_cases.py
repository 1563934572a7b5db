"""The bodies that the images API accepts and refuses, transcribed by hand.

See `docs/reference/images-api.md#parameters` and `docs/reference/images-api.md#refusals`.

Nothing here is read from `models.yaml`: the table below is a second, independent statement of the
same facts. A row is (models, JSON members beside `model` and `prompt`, outcome) and is one case for
each of its models; `ABSENT` is a body without `model`. An outcome is a whole error, or the request
with everything that is off its default.
"""

import json

from gateway.errors import InvalidRequest
from gateway.request.body import parse_body
from gateway.request.validation import validate
from tests.catalogs import shipped_catalog
from tests.hints import without_hint
from tests.rows import each_row

CATALOG = shipped_catalog()

ABSENT = ("",)
D2 = ("dall-e-2",)
D3 = ("dall-e-3",)
DALLE = D2 + D3
GPT1 = ("gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5")
LATEST = ("chatgpt-image-latest",)
GPT2 = ("gpt-image-2", "gpt-image-2-2026-04-21")
FIXED = GPT1 + LATEST  # GPT models with a list of sizes
GPT = GPT1 + GPT2 + LATEST
ALL = DALLE + GPT

USER_ERROR = "image_generation_user_error"


# ── outcomes ────────────────────────────────────────────────────────────────────────────────


def gets(model="", **off_default):
    """Accepted: the model (the requested one unless given), and everything off its default."""
    return model, off_default


def no(message, param, code, *, type="invalid_request_error", status=400):
    """Refused with this error."""
    return {"message": message, "type": type, "param": param, "code": code, "status": status}


def unknown(name):
    return no(f"Unknown parameter: '{name}'.", name, "unknown_parameter")


def wrong_type(param, expected, got):
    message = f"Invalid type for '{param}': expected {expected}, but got {got} instead."
    return no(message, param, "invalid_type")


def not_listed(param, value, known):
    message = f"Invalid value: '{value}'. Supported values are: {known}."
    return no(message, param, "invalid_value")


def bad_size(message):
    return no(message, "size", "invalid_value", type=USER_ERROR)


def below(param, minimum, got):
    message = (
        f"Invalid '{param}': integer below minimum value. "
        f"Expected a value >= {minimum}, but got {got} instead."
    )
    return no(message, param, "integer_below_min_value")


def above(param, maximum, got):
    message = (
        f"Invalid '{param}': integer above maximum value. "
        f"Expected a value <= {maximum}, but got {got} instead."
    )
    return no(message, param, "integer_above_max_value")


def too_long(maximum, got):
    message = (
        "Invalid 'prompt': string too long. Expected a string with maximum length "
        f"{maximum}, but got a string with length {got} instead."
    )
    return no(message, "prompt", "string_above_max_length")


def no_model(name):
    return no(f"The model '{name}' does not exist.", "model", "invalid_value", type=USER_ERROR)


D2_SIZES = "'256x256', '512x512', '1024x1024', and 'auto'"
D3_SIZES = "'1024x1024', '1792x1024', '1024x1792', and 'auto'"
GPT_SIZES = "'1024x1024', '1024x1536', '1536x1024', and 'auto'"
GPT_QUALITIES = "'low', 'medium', 'high', and 'auto'"
ONE_GPT_QUALITY = "one of 'low', 'medium', 'high', or 'auto'"
N1 = no("You must provide n=1 for this model.", None, None)
MISSING_PROMPT = no("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter")
EMPTY_PROMPT = no(
    "Invalid 'prompt': empty string. Expected a string with minimum length 1, "
    "but got an empty string instead.",
    "prompt",
    "empty_string",
)
STREAM_N = no(
    "Streaming is only supported with n=1.", "input", "unsupported_parameter", type=USER_ERROR
)
TRANSPARENT_JPEG = no(
    "Transparent background is not supported for JPEG output format",
    "background",
    "invalid_value",
    type=USER_ERROR,
)
PNG_COMPRESSION = no(
    "Compression less than 100 is not supported for PNG output format",
    None,
    "invalid_png_output_compression",
    type=USER_ERROR,
)
EXPECTED_FORM = "Expected WIDTHxHEIGHT, for example '1824x1024'."
DIVISIBLE = "Width and height must both be divisible by 16."
EDGE = "The longest edge must be less than or equal to 3840."
BELOW_BUDGET = "Requested resolution is below the current minimum pixel budget."
ABOVE_BUDGET = "Requested resolution exceeds the current pixel budget."
RATIO = "The aspect ratio must be between 1:3 and 3:1."

# ── the table ───────────────────────────────────────────────────────────────────────────────

ROWS = [
    # Nothing but the prompt
    (ALL, "", gets()),
    (ABSENT, "", gets("dall-e-2")),
    # n
    (ALL, '"n": 1', gets()),
    (ALL, '"n": null', gets()),
    (D3, '"n": 1.0', gets()),
    (D2 + GPT, '"n": 2', gets(n=2)),
    (D2 + GPT1, '"n": 2.0', gets(n=2)),
    (D2 + GPT, '"n": 10', gets(n=10)),
    (ALL, '"n": 0', below("n", 1, 0)),
    (D2 + GPT1, '"n": -1', below("n", 1, -1)),
    (ALL, '"n": 11', above("n", 10, 11)),
    (D2, '"n": 1000000', above("n", 10, 1000000)),
    (D3, '"n": 2', N1),
    (D3, '"n": 10', N1),
    (D2 + D3 + GPT1, '"n": "2"', wrong_type("n", "an integer", "a string")),
    (D2 + D3 + GPT2, '"n": 1.5', wrong_type("n", "an integer", "a decimal number")),
    (D2 + D3 + LATEST, '"n": true', wrong_type("n", "an integer", "a boolean")),
    (D2, '"n": false', wrong_type("n", "an integer", "a boolean")),
    (D2, '"n": {}', wrong_type("n", "an integer", "an object")),
    (D2, '"n": [1]', wrong_type("n", "an integer", "an array")),
    # quality
    (D2, '"quality": "standard"', gets()),
    (D2, '"quality": "auto"', gets()),
    (D2, '"quality": "hd"', not_listed("quality", "hd", "'standard' and 'auto'")),
    (D2, '"quality": "high"', not_listed("quality", "high", "'standard' and 'auto'")),
    (D2, '"quality": 1', wrong_type("quality", "one of 'standard' or 'auto'", "an integer")),
    (D3, '"quality": "standard"', gets()),
    (D3, '"quality": "auto"', gets()),
    (D3, '"quality": "hd"', gets(quality="hd")),
    (D3, '"quality": "low"', not_listed("quality", "low", "'standard', 'hd', and 'auto'")),
    (
        D3,
        '"quality": true',
        wrong_type("quality", "one of 'standard', 'hd', or 'auto'", "a boolean"),
    ),
    (ALL, '"quality": null', gets()),
    (GPT, '"quality": "auto"', gets()),
    (GPT, '"quality": "low"', gets(quality="low")),
    (GPT, '"quality": "medium"', gets(quality="medium")),
    (GPT, '"quality": "high"', gets(quality="high")),
    (GPT, '"quality": "standard"', not_listed("quality", "standard", GPT_QUALITIES)),
    (GPT1, '"quality": "hd"', not_listed("quality", "hd", GPT_QUALITIES)),
    (GPT, '"quality": "ultra"', not_listed("quality", "ultra", GPT_QUALITIES)),
    (GPT2, '"quality": "xhigh"', not_listed("quality", "xhigh", GPT_QUALITIES)),
    (GPT1, '"quality": "HIGH"', not_listed("quality", "HIGH", GPT_QUALITIES)),
    (GPT1, '"quality": ""', not_listed("quality", "", GPT_QUALITIES)),
    (GPT, '"quality": 1', wrong_type("quality", ONE_GPT_QUALITY, "an integer")),
    (LATEST, '"quality": ["low"]', wrong_type("quality", ONE_GPT_QUALITY, "an array")),
    # size, where there is a list
    (D2, '"size": "256x256"', gets(size="256x256")),
    (D2, '"size": "512x512"', gets(size="512x512")),
    (DALLE, '"size": "1024x1024"', gets()),
    (ALL, '"size": "auto"', gets()),
    (ALL, '"size": null', gets()),
    (D2, '"size": "1792x1024"', not_listed("size", "1792x1024", D2_SIZES)),
    (D2, '"size": "1536x1024"', not_listed("size", "1536x1024", D2_SIZES)),
    (
        D2,
        '"size": 1024',
        wrong_type("size", "one of '256x256', '512x512', '1024x1024', or 'auto'", "an integer"),
    ),
    (D3, '"size": "1792x1024"', gets(size="1792x1024")),
    (D3, '"size": "1024x1792"', gets(size="1024x1792")),
    (D3, '"size": "512x512"', not_listed("size", "512x512", D3_SIZES)),
    (D3, '"size": "1024x1536"', not_listed("size", "1024x1536", D3_SIZES)),
    (FIXED, '"size": "1024x1024"', gets(size="1024x1024")),
    (FIXED, '"size": "1536x1024"', gets(size="1536x1024")),
    (FIXED, '"size": "1024x1536"', gets(size="1024x1536")),
    (FIXED, '"size": "512x512"', not_listed("size", "512x512", GPT_SIZES)),
    (FIXED, '"size": "1792x1024"', not_listed("size", "1792x1024", GPT_SIZES)),
    (GPT1, '"size": "1024X1024"', not_listed("size", "1024X1024", GPT_SIZES)),
    (GPT1, '"size": "1024x1024 "', not_listed("size", "1024x1024 ", GPT_SIZES)),
    (
        GPT1,
        '"size": {}',
        wrong_type("size", "one of '1024x1024', '1024x1536', '1536x1024', or 'auto'", "an object"),
    ),
    # size by rule
    (GPT2, '"size": "1024x1024"', gets(size="1024x1024")),
    (GPT2, '"size": "2048x2048"', gets(size="2048x2048")),
    (GPT2, '"size": "1824x1024"', gets(size="1824x1024")),
    (GPT2, '"size": "3840x2160"', gets(size="3840x2160")),
    (GPT2, '"size": "2160x3840"', gets(size="2160x3840")),
    (GPT2, '"size": "2880x2880"', gets(size="2880x2880")),
    (GPT2, '"size": "640x1024"', gets(size="640x1024")),
    (GPT2, '"size": "1536x512"', gets(size="1536x512")),
    (GPT2, '"size": "512x1536"', gets(size="512x1536")),
    (GPT2, '"size": "bogus"', bad_size(f"Invalid size 'bogus'. {EXPECTED_FORM}")),
    (GPT2, '"size": ""', bad_size(f"Invalid size ''. {EXPECTED_FORM}")),
    (GPT2, '"size": "1024"', bad_size(f"Invalid size '1024'. {EXPECTED_FORM}")),
    (GPT2, '"size": "1024X1024"', bad_size(f"Invalid size '1024X1024'. {EXPECTED_FORM}")),
    (GPT2, '"size": "1024x1024x16"', bad_size(f"Invalid size '1024x1024x16'. {EXPECTED_FORM}")),
    (GPT2, '"size": "-16x1024"', bad_size(f"Invalid size '-16x1024'. {EXPECTED_FORM}")),
    (GPT2, '"size": "01024x1024"', bad_size(f"Invalid size '01024x1024'. {EXPECTED_FORM}")),
    (GPT2, '"size": "1024x0"', bad_size(f"Invalid size '1024x0'. {EXPECTED_FORM}")),
    (GPT2, '"size": "1024x1024\\n"', bad_size(f"Invalid size '1024x1024\n'. {EXPECTED_FORM}")),
    (GPT2, '"size": "1000x1000"', bad_size(f"Invalid size '1000x1000'. {DIVISIBLE}")),
    (GPT2, '"size": "1024x1000"', bad_size(f"Invalid size '1024x1000'. {DIVISIBLE}")),
    (GPT2, '"size": "1x1"', bad_size(f"Invalid size '1x1'. {DIVISIBLE}")),
    (GPT2, '"size": "3856x2160"', bad_size(f"Invalid size '3856x2160'. {EDGE}")),
    (GPT2, '"size": "2048x4096"', bad_size(f"Invalid size '2048x4096'. {EDGE}")),
    (GPT2, '"size": "512x512"', bad_size(f"Invalid size '512x512'. {BELOW_BUDGET}")),
    (GPT2, '"size": "624x1040"', bad_size(f"Invalid size '624x1040'. {BELOW_BUDGET}")),
    (GPT2, '"size": "3840x2176"', bad_size(f"Invalid size '3840x2176'. {ABOVE_BUDGET}")),
    (GPT2, '"size": "2896x2880"', bad_size(f"Invalid size '2896x2880'. {ABOVE_BUDGET}")),
    (GPT2, '"size": "3200x1024"', bad_size(f"Invalid size '3200x1024'. {RATIO}")),
    (GPT2, '"size": "512x2048"', bad_size(f"Invalid size '512x2048'. {RATIO}")),
    (GPT2, '"size": 1024', wrong_type("size", "a string", "an integer")),
    (GPT2, '"size": [1024, 1024]', wrong_type("size", "a string", "an array")),
    # style
    (D3, '"style": "vivid"', gets()),
    (D3, '"style": "natural"', gets(style="natural")),
    (ALL, '"style": null', gets()),
    (D3, '"style": "noir"', not_listed("style", "noir", "'vivid' and 'natural'")),
    (D3, '"style": 5', wrong_type("style", "one of 'vivid' or 'natural'", "an integer")),
    (D2 + GPT, '"style": "vivid"', unknown("style")),
    (D2 + GPT1, '"style": "natural"', unknown("style")),
    # response_format
    (DALLE, '"response_format": "url"', gets(requested_response_format="url")),
    (
        DALLE,
        '"response_format": "b64_json"',
        gets(response_format="b64_json", requested_response_format="b64_json"),
    ),
    (ALL, '"response_format": null', gets()),
    (
        DALLE,
        '"response_format": "png"',
        not_listed("response_format", "png", "'url' and 'b64_json'"),
    ),
    (
        D2,
        '"response_format": {"type": "url"}',
        wrong_type("response_format", "one of 'url' or 'b64_json'", "an object"),
    ),
    (GPT, '"response_format": "b64_json"', unknown("response_format")),
    (GPT, '"response_format": "url"', unknown("response_format")),
    # background
    (GPT, '"background": "transparent"', gets(background="transparent")),
    (GPT, '"background": "opaque"', gets(background="opaque")),
    (GPT1, '"background": "auto"', gets()),
    (ALL, '"background": null', gets()),
    (
        GPT,
        '"background": "white"',
        not_listed("background", "white", "'transparent', 'opaque', and 'auto'"),
    ),
    (
        GPT1,
        '"background": false',
        wrong_type("background", "one of 'transparent', 'opaque', or 'auto'", "a boolean"),
    ),
    (DALLE, '"background": "auto"', unknown("background")),
    (DALLE, '"background": "opaque"', unknown("background")),
    # output_format
    (GPT1, '"output_format": "png"', gets()),
    (GPT, '"output_format": "jpeg"', gets(output_format="jpeg")),
    (GPT, '"output_format": "webp"', gets(output_format="webp")),
    (ALL, '"output_format": null', gets()),
    (
        GPT,
        '"output_format": "gif"',
        not_listed("output_format", "gif", "'png', 'webp', and 'jpeg'"),
    ),
    (
        GPT1,
        '"output_format": "jpg"',
        not_listed("output_format", "jpg", "'png', 'webp', and 'jpeg'"),
    ),
    (
        GPT2,
        '"output_format": 1.5',
        wrong_type("output_format", "one of 'png', 'webp', or 'jpeg'", "a decimal number"),
    ),
    (DALLE, '"output_format": "png"', unknown("output_format")),
    # output_compression
    (GPT, '"output_compression": 100', gets()),
    (GPT1, '"output_compression": 100.0', gets()),
    (ALL, '"output_compression": null', gets()),
    (GPT, '"output_compression": 99', PNG_COMPRESSION),
    (GPT1, '"output_compression": 0', PNG_COMPRESSION),
    (GPT1, '"output_compression": 50, "output_format": "png"', PNG_COMPRESSION),
    (
        GPT,
        '"output_compression": 50, "output_format": "jpeg"',
        gets(output_compression=50, output_format="jpeg"),
    ),
    (
        GPT1,
        '"output_compression": 0, "output_format": "webp"',
        gets(output_compression=0, output_format="webp"),
    ),
    (GPT1, '"output_compression": 100, "output_format": "webp"', gets(output_format="webp")),
    (GPT1, '"output_compression": 101', above("output_compression", 100, 101)),
    (GPT1, '"output_compression": -1', below("output_compression", 0, -1)),
    (
        GPT2,
        '"output_compression": "80"',
        wrong_type("output_compression", "an integer", "a string"),
    ),
    (
        GPT2,
        '"output_compression": 80.5',
        wrong_type("output_compression", "an integer", "a decimal number"),
    ),
    (DALLE, '"output_compression": 100', unknown("output_compression")),
    # moderation; `auto` comes last, see docs/reference/images-api.md#values
    (GPT, '"moderation": "low"', gets(moderation="low")),
    (GPT1, '"moderation": "auto"', gets()),
    (ALL, '"moderation": null', gets()),
    (GPT, '"moderation": "high"', not_listed("moderation", "high", "'low' and 'auto'")),
    (GPT1, '"moderation": 0', wrong_type("moderation", "one of 'low' or 'auto'", "an integer")),
    (DALLE, '"moderation": "low"', unknown("moderation")),
    (DALLE, '"moderation": "auto"', unknown("moderation")),
    # partial_images
    (ALL, '"partial_images": 0', gets()),
    (ALL, '"partial_images": 0.0', gets()),
    (ALL, '"partial_images": null', gets()),
    (GPT, '"partial_images": 3', gets()),
    (GPT, '"partial_images": 3, "stream": true', gets(stream=True, partial_images=3)),
    (GPT1, '"partial_images": 2, "stream": false', gets()),
    (GPT1, '"partial_images": 4', above("partial_images", 3, 4)),
    (GPT1, '"partial_images": -1', below("partial_images", 0, -1)),
    (GPT1, '"partial_images": "1"', wrong_type("partial_images", "an integer", "a string")),
    (GPT2, '"partial_images": false', wrong_type("partial_images", "an integer", "a boolean")),
    (DALLE, '"partial_images": 1', unknown("partial_images")),
    (DALLE, '"partial_images": false', unknown("partial_images")),
    (DALLE, '"partial_images": "0"', unknown("partial_images")),
    # stream
    (ALL, '"stream": false', gets()),
    (ALL, '"stream": null', gets()),
    (GPT, '"stream": true', gets(stream=True)),
    (GPT, '"stream": true, "n": 2', STREAM_N),
    (GPT1, '"stream": true, "n": 1', gets(stream=True)),
    (GPT1, '"stream": false, "n": 2', gets(n=2)),
    (GPT, '"stream": "yes"', wrong_type("stream", "a boolean", "a string")),
    (GPT1, '"stream": 1', wrong_type("stream", "a boolean", "an integer")),
    (GPT1, '"stream": 0', wrong_type("stream", "a boolean", "an integer")),
    (DALLE, '"stream": true', unknown("stream")),
    (DALLE, '"stream": 0', unknown("stream")),
    (D2, '"stream": "false"', unknown("stream")),
    # user; strict mode requires a string
    (ALL, '"user": "u-1"', gets(user="u-1")),
    (ALL, '"user": null', gets()),
    (D2 + GPT1, '"user": ""', gets(user="")),
    (ALL, '"user": 123', wrong_type("user", "a string", "an integer")),
    (D2, '"user": 1.5', wrong_type("user", "a string", "a decimal number")),
    (D3, '"user": {"id": 1}', wrong_type("user", "a string", "an object")),
    # background with output_format
    (GPT, '"background": "transparent", "output_format": "jpeg"', TRANSPARENT_JPEG),
    (GPT1, '"background": "transparent", "output_format": "png"', gets(background="transparent")),
    (
        GPT1,
        '"background": "transparent", "output_format": "webp"',
        gets(background="transparent", output_format="webp"),
    ),
    (
        GPT1,
        '"background": "opaque", "output_format": "jpeg"',
        gets(background="opaque", output_format="jpeg"),
    ),
    # Unknown keys
    (ALL, '"foo": 1', unknown("foo")),
    (ALL, '"foo": null', unknown("foo")),
    (D2, '"reponse_format": "url"', unknown("reponse_format")),
    (D2, '"": 1', unknown("")),
    (D2, '"N": 1', unknown("N")),
    (GPT1, '"seed": 7', unknown("seed")),
    (GPT1, '"size ": "auto"', unknown("size ")),
    # The order of checks, only the first fault: docs/reference/images-api.md#order-of-checks
    (GPT1, '"n": 0, "foo": 1', unknown("foo")),
    (GPT1, '"foo": 1, "bar": 2', unknown("foo")),
    (GPT1, '"bar": 2, "foo": 1', unknown("bar")),
    (GPT1, '"style": "vivid", "response_format": "url"', unknown("style")),
    (GPT1, '"response_format": "url", "style": "vivid"', unknown("response_format")),
    (GPT1, '"quality": "ultra", "n": 0', below("n", 1, 0)),
    (D3, '"quality": "ultra", "n": 2', N1),
    (D3, '"stream": true, "n": 2', unknown("stream")),
    (
        GPT1,
        '"size": "1x1", "output_compression": 101, "quality": "ultra"',
        not_listed("quality", "ultra", GPT_QUALITIES),
    ),
    (GPT1, '"size": "1x1", "output_compression": 101', above("output_compression", 100, 101)),
    (GPT1, '"background": 1, "size": "1x1"', not_listed("size", "1x1", GPT_SIZES)),
    (D3, '"response_format": "x", "style": "y"', not_listed("style", "y", "'vivid' and 'natural'")),
    (
        GPT1,
        '"output_format": "gif", "background": "white"',
        not_listed("background", "white", "'transparent', 'opaque', and 'auto'"),
    ),
    (
        GPT1,
        '"moderation": "high", "output_format": "gif"',
        not_listed("output_format", "gif", "'png', 'webp', and 'jpeg'"),
    ),
    (
        GPT1,
        '"partial_images": 9, "moderation": "high"',
        not_listed("moderation", "high", "'low' and 'auto'"),
    ),
    (GPT1, '"stream": 1, "partial_images": 9', above("partial_images", 3, 9)),
    (GPT1, '"user": 1, "stream": 1', wrong_type("stream", "a boolean", "an integer")),
    (
        GPT1,
        '"user": 1, "stream": true, "n": 2',
        wrong_type("user", "a string", "an integer"),
    ),
    (
        GPT1,
        '"background": "transparent", "output_format": "jpeg", "stream": true, "n": 2',
        TRANSPARENT_JPEG,
    ),
    (GPT1, '"output_compression": 5, "stream": true, "n": 2', PNG_COMPRESSION),
    # The model omitted: docs/reference/images-api.md#an-omitted-model
    (ABSENT, '"n": 2, "size": "512x512"', gets("dall-e-2", n=2, size="512x512")),
    (ABSENT, '"quality": "auto"', gets("dall-e-2")),
    (ABSENT, '"size": "auto"', gets("dall-e-2")),
    (ABSENT, '"size": "1024x1024"', gets("dall-e-2")),
    (ABSENT, '"stream": false', gets("dall-e-2")),
    (ABSENT, '"partial_images": 0', gets("dall-e-2")),
    (ABSENT, '"background": null, "moderation": null', gets("dall-e-2")),
    (ABSENT, '"model": null', gets("dall-e-2")),
    (ABSENT, '"model": null, "stream": true', gets("gpt-image-2", stream=True)),
    (ABSENT, '"background": "auto"', gets("gpt-image-2")),
    (ABSENT, '"background": "opaque"', gets("gpt-image-2", background="opaque")),
    (ABSENT, '"output_format": "png"', gets("gpt-image-2")),
    (ABSENT, '"output_compression": 100', gets("gpt-image-2")),
    (ABSENT, '"moderation": "auto"', gets("gpt-image-2")),
    (ABSENT, '"moderation": "low"', gets("gpt-image-2", moderation="low")),
    (ABSENT, '"partial_images": 1', gets("gpt-image-2")),
    (ABSENT, '"stream": true', gets("gpt-image-2", stream=True)),
    (ABSENT, '"stream": 0', wrong_type("stream", "a boolean", "an integer")),
    (ABSENT, '"partial_images": false', wrong_type("partial_images", "an integer", "a boolean")),
    (ABSENT, '"quality": "low"', gets("gpt-image-2", quality="low")),
    (ABSENT, '"quality": "medium"', gets("gpt-image-2", quality="medium")),
    (ABSENT, '"quality": "high"', gets("gpt-image-2", quality="high")),
    (ABSENT, '"size": "1536x1024"', gets("gpt-image-2", size="1536x1024")),
    (ABSENT, '"size": "1024x1536"', gets("gpt-image-2", size="1024x1536")),
    (ABSENT, '"size": "2048x2048"', not_listed("size", "2048x2048", D2_SIZES)),
    (ABSENT, '"size": "1792x1024"', not_listed("size", "1792x1024", D2_SIZES)),
    (ABSENT, '"quality": "hd"', not_listed("quality", "hd", "'standard' and 'auto'")),
    (ABSENT, '"style": "vivid"', unknown("style")),
    (ABSENT, '"foo": 1', unknown("foo")),
    (
        ABSENT,
        '"quality": "high", "size": "256x256"',
        bad_size(f"Invalid size '256x256'. {BELOW_BUDGET}"),
    ),
    (ABSENT, '"stream": true, "response_format": "url"', unknown("response_format")),
    (ABSENT, '"response_format": "url"', gets("dall-e-2", requested_response_format="url")),
    # Models; strings only
    (("foo",), "", no_model("foo")),
    (("gpt-image-3",), "", no_model("gpt-image-3")),
    (("DALL-E-3",), "", no_model("DALL-E-3")),
    (("dall-e-2 ",), "", no_model("dall-e-2 ")),
    (("foo",), '"foo": 1, "n": 0', no_model("foo")),
    (ABSENT, '"model": ""', no_model("")),
    (ABSENT, '"model": "", "stream": true', no_model("")),
    (ABSENT, '"model": 123', wrong_type("model", "a string", "an integer")),
    (ABSENT, '"model": 1.0', wrong_type("model", "a string", "a decimal number")),
    (ABSENT, '"model": true', wrong_type("model", "a string", "a boolean")),
    (ABSENT, '"model": ["dall-e-2"]', wrong_type("model", "a string", "an array")),
    (ABSENT, '"model": {}', wrong_type("model", "a string", "an object")),
]

# The prompt. Rows of (models, the body without `model`, outcome).
PROMPT_ROWS = [
    (ALL + ABSENT, "{}", MISSING_PROMPT),
    (GPT1, '{"n": 0}', MISSING_PROMPT),
    (GPT1, '{"foo": 1}', unknown("foo")),
    (GPT1 + ABSENT, '{"prompt": null}', wrong_type("prompt", "a string", "null")),
    (GPT1, '{"prompt": 123}', wrong_type("prompt", "a string", "an integer")),
    (D2, '{"prompt": 1.5}', wrong_type("prompt", "a string", "a decimal number")),
    (D2, '{"prompt": 2.0}', wrong_type("prompt", "a string", "a decimal number")),
    (D3, '{"prompt": true}', wrong_type("prompt", "a string", "a boolean")),
    (GPT2, '{"prompt": ["an otter"]}', wrong_type("prompt", "a string", "an array")),
    (LATEST, '{"prompt": {"text": "x"}}', wrong_type("prompt", "a string", "an object")),
    (ALL, '{"prompt": ""}', EMPTY_PROMPT),
    (D3, '{"prompt": "", "n": 2}', EMPTY_PROMPT),
    (D2 + GPT1, '{"prompt": "   "}', gets()),
    (D2, f'{{"prompt": "{"x" * 1000}"}}', gets()),
    (D2, f'{{"prompt": "{"x" * 1001}"}}', too_long(1000, 1001)),
    (D2, f'{{"prompt": "{"🦦" * 1000}"}}', gets()),
    (D3, f'{{"prompt": "{"x" * 4000}"}}', gets()),
    (D3, f'{{"prompt": "{"x" * 4001}"}}', too_long(4000, 4001)),
    (GPT, f'{{"prompt": "{"x" * 32000}"}}', gets()),
    (GPT, f'{{"prompt": "{"x" * 32001}"}}', too_long(32000, 32001)),
    (ABSENT, f'{{"prompt": "{"x" * 1001}"}}', too_long(1000, 1001)),
    (
        ABSENT,
        f'{{"prompt": "{"x" * 1001}", "quality": "low"}}',
        gets("gpt-image-2", quality="low"),
    ),
]


# ── from rows to cases ──────────────────────────────────────────────────────────────────────


def _members(model, members):
    start = f'"model": {json.dumps(model)}' if model else ""
    return "{" + ", ".join(part for part in (start, members) if part) + "}"


def _cases():
    for models, members, outcome in ROWS:
        with_prompt = f'"prompt": "an otter", {members}'.rstrip(", ")
        for model in models:
            yield model, members or "only a prompt", _members(model, with_prompt), outcome
    for models, body, outcome in PROMPT_ROWS:
        for model in models:
            yield model, body, _members(model, body[1:-1]), outcome


CASES = [(model, raw, outcome) for model, _, raw, outcome in _cases()]
IDS = [f"{model or 'no model'}: {name[:90]}" for model, name, _, _ in _cases()]


def _outcome(raw):
    try:
        request = validate(parse_body(raw.encode(), "application/json"), CATALOG)
    except InvalidRequest as error:
        return {**without_hint(error.body["error"]), "status": error.status}
    fields = {
        "n": request.n,
        "response_format": request.response_format,
        "requested_response_format": request.requested_response_format,
        "user": request.user,
        "stream": request.stream,
        "partial_images": request.partial_images,
    }
    return request.model, request.prompt, fields, dict(request.parameters)


def _expected(model, raw, outcome):
    if isinstance(outcome, dict):
        return outcome
    resolved, off_default = outcome[0] or model, dict(outcome[1])
    fields = {
        "n": 1,
        "response_format": "url" if resolved.startswith("dall-e") else "b64_json",
        "requested_response_format": None,
        "user": None,
        "stream": False,
        "partial_images": 0,
    }
    fields |= {name: off_default.pop(name) for name in list(off_default) if name in fields}
    return resolved, json.loads(raw)["prompt"], fields, off_default


@each_row(("model", "raw", "outcome"), CASES, ids=IDS)
def test_a_body_has_the_documented_outcome(model, raw, outcome):
    assert _outcome(raw) == _expected(model, raw, outcome)


def test_there_are_at_least_300_different_cases():
    assert len({raw for _, raw, _ in CASES}) == len(CASES) >= 300
