"""Numbers of the example checkpoint's vocabulary, read from its files."""

import json

from tests.paths import MINI

CONFIG = json.loads((MINI / "config.json").read_text())
VOCABULARY: int = CONFIG["text_config"]["vocab_size"]  # rows of the embedding
TOKEN_COUNT = 1 + max(token["id"] for token in json.loads((MINI / "tokenizer.json").read_text())["added_tokens"])
MEDIA_IDS: dict[str, int] = {key: value for key, value in CONFIG.items() if key.endswith("_token_id")}
TEXT = range(3, CONFIG["image_token_id"])  # ids of ordinary text
