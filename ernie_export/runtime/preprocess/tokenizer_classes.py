"""The tokenizer classes that transformers 5.23 has, besides Llama's and those that take tokenizer.json as it stands.

Each builds a pipeline of its own from tokenizer.json, so a checkpoint that names one cannot be served by another. A
name that transformers does not know stands for the file as it is (`AutoTokenizer.from_pretrained`).
"""

OTHER_CLASSES = frozenset(
    f"{name}Tokenizer"
    for name in (
        "Albert Auto Bart Barthez Bartpho Basic Bert BertGeneration BertJapanese Bertweet BigBird BioGpt Blenderbot "
        "BlenderbotSmall ByT5 CLIP CTRL Camembert Canine Character Clvp CodeGen CodeLlama Cohere ConvBert Cpm "
        "CpmAnt DPRContextEncoder DPRQuestionEncoder DPRReader Deberta DebertaV2 Dia DistilBert Esm Esmc FNet FSMT "
        "FastSpeech2Conformer Flaubert Funnel GPT2 GPTNeoX GPTNeoXJapanese GPTSw3 Gemma Herbert LED Lasr LayoutLMv2 "
        "LayoutLMv3 LayoutXLM Luke Lxmert M2M100 MBart MBart50 MLuke MPNet Marian MarkupLM Mecab Mgpstr MobileBert "
        "Mvp MyT5 Nllb Nougat OpenAIGPT PLBart Parakeet Pegasus Perceiver Phobert Pop2Piano ProphetNet Qwen2 "
        "Qwen3_5 Rag Reformer RemBert RoCBert RoFormer Roberta SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 "
        "Splinter SqueezeBert T5 Tapas Tipsv2 Udop VideoPrism Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC Whisper Wordpiece "
        "XGLM XLM XLMRoberta XLNet"
    ).split()
)
