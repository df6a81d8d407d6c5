"""DeepSeek-OCR: SAM-B and CLIP-L encoder, linear projector, DeepSeek mixture-of-experts decoder."""

from modelmeter.models.deepseek_ocr.model import DeepSeekOCR
from modelmeter.models.deepseek_ocr.preprocess import CropRule
from modelmeter.models.deepseek_ocr.published import PublishedDeepSeekOCR

__all__ = ["CropRule", "DeepSeekOCR", "PublishedDeepSeekOCR"]
