"""DeepSeek-OCR: SAM-B and CLIP-L encoder, linear projector, DeepSeek mixture-of-experts decoder."""

from modelmeter.models.deepseek_ocr.model import DeepSeekOCR
from modelmeter.models.deepseek_ocr.preprocess import CropRule

__all__ = ["CropRule", "DeepSeekOCR"]
