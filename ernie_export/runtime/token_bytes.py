"""What single tokens stand for, in bytes: a character may span several tokens, and then none of them is text."""

import re

from ernie_export.runtime.preprocess.tokenizer import ChatTokenizer

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class TokenBytes:
    """Bytes that a token adds to a text, by id; of an added token its name, though those in `special` add nothing."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._pieces = tokenizer.backend.id_to_token
        self._added = {id: token.content for id, token in tokenizer.backend.get_added_tokens_decoder().items()}
        self._alphabet = byte_alphabet() if tokenizer.byte_level else None
        self.special = {id for id, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}

    def __call__(self, id: int) -> bytes:
        """Of an id that the vocabulary has no token for: nothing."""
        if id in self._added:
            return self._added[id].encode()
        piece = self._pieces(id) or ""
        if self._alphabet is not None:
            return bytes(self._alphabet[character] for character in piece)
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(found[1])
        return piece.replace("▁", " ").encode()


def byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of a byte-level vocabulary.

    Printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on, in order (the alphabet of
    GPT-2's `bytes_to_unicode`).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
