"""DeepSeek-OCR: its rule of crops, and the published report as departures from the real model."""
