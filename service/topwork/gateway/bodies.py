"""Request messages from HTTP bodies: JSON, NDJSON, forms with files, and a raw file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from starlette.requests import Request

from topwork.client.calls import add_input, new_request_id
from topwork.client.inputs import Audio, Content, of_file, to_input
from topwork.client.upload import UploadBatcher, set_content
from topwork.errors import InvalidInput
from topwork.gateway import json_mapping
from topwork.gateway.errors import HttpError
from topwork.gateway.fields import Fields, is_repeated
from topwork.gateway.inbox import Inbox
from topwork.gateway.methods import Method, descriptor
from topwork.gateway.multipart import Part, parts
from topwork.limits import DEFAULT_LIMITS

MESSAGE_BYTES = DEFAULT_LIMITS.max_message_bytes
JSON_BYTES = MESSAGE_BYTES * 4 // 3 + 2**20
"""Longest JSON with images, whose base64 is 4/3 as long."""
SMALL_BYTES = 4 * 2**20
"""Longest body of a request without images."""
LINE_BYTES = JSON_BYTES
INLINE_BYTES = 65_536
"""Raising it parses longer JSON in the event loop, not in a thread."""

NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
FORM = "multipart/form-data"
URL_FORM = "application/x-www-form-urlencoded"
RAW = ("application/octet-stream", "application/dicom")
"""Content types of a body that is one image, besides image/*; those of recordings are audio/*."""
CONFIG = "config"
"""The field of an upload's first message that has all but the images."""
IMAGES = "images"
IMAGE = "image"
LABEL = "label"
"""The field of a config whose upload has photos of one label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Which content types a request message can be made of."""

    has_images: bool
    """True: the message has the field ``images`` or ``image``, whose files a form may have."""
    one_image: bool
    """True: the field is ``image``, the bytes of one file (Explain)."""
    named_images: bool
    """True: images are messages with ``content`` and ``display_name``, otherwise bytes."""
    labelled_images: bool
    """True: the images of a form have the names of their fields as labels: config has none."""
    base: str
    """The field that form fields and query parameters are in, or empty."""
    most_bytes: int
    """Length of the longest JSON."""

    @classmethod
    def of(cls, message: Descriptor) -> Shape:
        """Return the shape of a message."""
        images = message.fields_by_name.get(IMAGES)
        one_image = IMAGE in message.fields_by_name
        config: Any = message.fields_by_name.get(CONFIG)
        has_images = images is not None and is_repeated(images)
        return cls(
            has_images=has_images or one_image,
            one_image=one_image,
            named_images=images is not None and images.message_type is not None,
            labelled_images=config is not None and LABEL not in config.message_type.fields_by_name,
            base=CONFIG if CONFIG in message.fields_by_name else "",
            most_bytes=JSON_BYTES if _has_bytes(message, set()) else SMALL_BYTES,
        )


class RequestReader:
    """Reader of the requests of one method."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._shape = Shape.of(descriptor(method))

    async def message(self, request: Request, inbox: Inbox) -> Message:
        """Return the one request message. Raises InvalidInput, HttpError, ClientLeft."""
        kind = self._content_type(request)
        if not self._method.has_body:
            await inbox.read(0)
            return self._made(self._fields(request), request)
        if kind in {"", "application/json"}:
            body = await inbox.read(self._shape.most_bytes)
            if kind == "" and body:
                raise self._unsupported(kind)
            self._refuse_query(request)
            return await self._of_json(body, request)
        if kind == URL_FORM:
            return self._made(await self._of_url_form(request, inbox), request)
        fields = self._fields(request)
        images = [part async for part in self._images(request, inbox, kind, fields)]
        message = self._made(fields, request)
        self._add(message, images)
        return message

    async def messages(self, request: Request, inbox: Inbox) -> AsyncIterator[Message]:
        """Yield the request messages of a stream, as the body arrives. Raises as ``message``."""
        kind = self._content_type(request)
        if kind in NDJSON:
            self._refuse_query(request)
            async for message in self._of_lines(request, inbox):
                yield message
        elif self._shape.named_images and (kind == FORM or self._is_raw(kind)):
            async for message in self._upload(request, inbox, kind):
                yield message
        else:
            yield await self.message(request, inbox)

    async def _upload(self, request: Request, inbox: Inbox, kind: str) -> AsyncIterator[Message]:
        """Yield messages with the images of a form, whose fields precede its files."""
        fields = self._fields(request)
        batcher: UploadBatcher[Any] | None = None
        held = 0
        async for image in self._images(request, inbox, kind, fields, fields_first=True):
            if batcher is None:
                batcher = UploadBatcher(self._made(fields, request))
            full = batcher.add(
                image.filename or image.name,
                _content(image),
                **({"label": image.name} if self._shape.labelled_images else {}),
            )
            held += len(image.content)
            if full is not None:
                yield full
                inbox.drop(held - len(image.content))
                held = len(image.content)
        yield self._made(fields, request) if batcher is None else batcher.finish()

    async def _images(
        self,
        request: Request,
        inbox: Inbox,
        kind: str,
        fields: Fields,
        *,
        fields_first: bool = False,
    ) -> AsyncIterator[Part]:
        """Yield the files of a form, or the one image that is the body; collect form fields."""
        if not self._shape.has_images or not (kind == FORM or self._is_raw(kind)):
            raise self._unsupported(kind)
        if kind != FORM:
            content = await inbox.read(MESSAGE_BYTES)
            yield Part(name=IMAGE, filename="", is_file=True, content=content, content_type=kind)
            return
        content_type = request.headers["content-type"]
        has_files = False
        async for part in parts(inbox.chunks(), content_type, most_bytes=MESSAGE_BYTES - 2**16):
            if part.is_file:
                inbox.hold(len(part.content))
                has_files = True
                yield part
            elif has_files and fields_first:
                raise InvalidInput(
                    f"form field {part.name[:80]!r} comes after a file: put all fields first, "
                    "because files are passed on as they arrive",
                    field=part.name[:80],
                )
            else:
                fields.add(part.name, part.text())

    async def _of_url_form(self, request: Request, inbox: Inbox) -> Fields:
        body = await inbox.read(SMALL_BYTES)
        if body.lstrip().startswith(b"{"):
            raise HttpError(
                415, "send JSON with the header Content-Type: application/json", reason="MEDIA_TYPE"
            )
        fields = self._fields(request)
        try:
            pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict")
        except ValueError as error:
            raise InvalidInput(f"the form cannot be decoded: {error}", field="body") from error
        for name, value in pairs:
            fields.add(name, value)
        return fields

    async def _of_lines(self, request: Request, inbox: Inbox) -> AsyncIterator[Message]:
        rest = bytearray()
        first = True
        async for chunk in inbox.chunks():
            inbox.hold(len(chunk))
            rest += chunk
            if b"\n" in chunk:
                *lines, last = rest.split(b"\n")
                for line in filter(bytes.strip, map(bytes, lines)):
                    yield await self._of_json(line, request, with_path=first)
                    first = False
                inbox.drop(len(rest) - len(last))
                rest = last
            if len(rest) > LINE_BYTES:
                raise HttpError(
                    413, f"a line has more than {LINE_BYTES} bytes", reason="BODY_TOO_LARGE"
                )
        if rest.strip():
            yield await self._of_json(bytes(rest), request, with_path=first)

    async def _of_json(self, body: bytes, request: Request, *, with_path: bool = True) -> Message:
        if len(body) <= INLINE_BYTES:
            message = self._parsed(body)
        else:
            message = await asyncio.to_thread(self._parsed, body)
        return self._with_path(message, request) if with_path else message

    def _parsed(self, body: bytes) -> Message:
        message = self._method.request()
        if body.strip():
            json_mapping.merge(json_mapping.parse(body), message)
        return message

    def _made(self, fields: Fields, request: Request) -> Message:
        message = self._method.request()
        json_mapping.merge(fields.tree, message)
        return self._with_path(message, request)

    def _with_path(self, message: Message, request: Request) -> Message:
        """Set the fields of the path. Raises InvalidInput if the request has another value."""
        for path, value in self._method.template.fields(request.path_params).items():
            *outer, last = path.split(".")
            node: Any = message
            for name in outer:
                node = getattr(node, name)
            if getattr(node, last) not in {"", value}:
                raise InvalidInput(
                    f"{path} is {getattr(node, last)[:80]!r}, and {value[:80]!r} in the path",
                    field=path,
                )
            setattr(node, last, value)
        self._identify(message)
        return message

    def _identify(self, message: Any) -> None:
        """Set an unset idempotency key, as the Python client does: gRPC itself may retry a call."""
        holder = getattr(message, self._shape.base) if self._shape.base else message
        if "request_id" in holder.DESCRIPTOR.fields_by_name and not holder.request_id:
            holder.request_id = new_request_id()

    def _fields(self, request: Request) -> Fields:
        fields = Fields(descriptor(self._method), self._shape.base)
        for name, value in request.query_params.multi_items():
            fields.add(name, value)
        return fields

    def _add(self, message: Any, images: list[Part]) -> None:
        if self._shape.one_image:
            if len(images) != 1:
                raise InvalidInput(f"the form has {len(images)} files, not one", field=IMAGE)
            content = _content(images[0])
            if isinstance(content, bytes):
                message.image = content
            else:
                message.input.CopyFrom(to_input(content))
        elif self._shape.named_images:
            for image in images:
                set_content(message.images.add(display_name=image.filename), _content(image))
        else:
            for image in images:
                add_input(message, _content(image))

    def _content_type(self, request: Request) -> str:
        return request.headers.get("content-type", "").partition(";")[0].strip().lower()

    def _is_raw(self, kind: str) -> bool:
        return kind.startswith(("image/", "audio/")) or kind in RAW

    def _refuse_query(self, request: Request) -> None:
        if request.url.query:
            raise InvalidInput(
                "the JSON body has all fields, so the URL may have no ?parameters", field="query"
            )

    def _unsupported(self, kind: str) -> HttpError:
        kinds = ["application/json", URL_FORM]
        if self._method.reads_stream:
            kinds.append(NDJSON[0])
        if self._shape.has_images:
            kinds += [FORM, "image/*", "audio/*", "application/octet-stream"]
        return HttpError(
            415,
            f"the Content-Type is {kind[:80]!r}; it must be one of {', '.join(kinds)}",
            reason="MEDIA_TYPE",
        )


def _content(part: Part) -> Content:
    """Return a file: audio by its content type or the suffix of its name, otherwise an image."""
    if part.content_type.startswith("audio/"):
        return Audio(part.content)
    return of_file(part.filename, part.content)


def _has_bytes(message: Descriptor, seen: set[str]) -> bool:
    if message.full_name in seen:
        return False
    seen.add(message.full_name)
    return any(
        field.type == FieldDescriptor.TYPE_BYTES
        or (field.message_type is not None and _has_bytes(field.message_type, seen))
        for field in message.fields
    )
