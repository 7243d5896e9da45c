"""How the page looks: colors, type, and Gradio's parts in them. Fonts are the system's; nothing is fetched."""

from __future__ import annotations

from pathlib import Path

from gradio.themes import Base
from gradio.themes.utils import colors, sizes

CSS = Path(__file__).with_name("style.css")

_SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


class Calm(Base):
    """Paper and ink, one strong color for what is to be pressed."""

    def __init__(self) -> None:
        """Set what the style sheet does not."""
        super().__init__(
            primary_hue=colors.teal,
            secondary_hue=colors.teal,
            neutral_hue=colors.stone,
            text_size=sizes.text_md,
            radius_size=sizes.radius_md,
            font=_SANS,
            font_mono=_MONO,
        )
        self.set(
            body_background_fill="#f7f5f0",
            body_background_fill_dark="#14171a",
            body_text_color="#22262a",
            body_text_color_dark="#e8e6e1",
            body_text_color_subdued="#5b6066",
            body_text_color_subdued_dark="#a9aeb4",
            background_fill_primary="#ffffff",
            background_fill_primary_dark="#1c2024",
            background_fill_secondary="#fbfaf7",
            background_fill_secondary_dark="#181b1f",
            border_color_primary="#ddd8cd",
            border_color_primary_dark="#343a41",
            block_background_fill="transparent",
            block_background_fill_dark="transparent",
            block_border_color="#ddd8cd",
            block_border_color_dark="#343a41",
            block_border_width="0px",
            block_padding="0px",
            block_label_padding="0px",
            form_gap_width="14px",
            layout_gap="14px",
            input_border_width="1px",
            block_shadow="none",
            block_label_background_fill="transparent",
            block_label_background_fill_dark="transparent",
            block_label_border_width="0px",
            block_label_text_color="#5b6066",
            block_label_text_color_dark="#a9aeb4",
            block_title_text_color="#22262a",
            block_title_text_color_dark="#e8e6e1",
            block_title_text_weight="600",
            block_info_text_color="#5b6066",
            block_info_text_color_dark="#a9aeb4",
            input_background_fill="#ffffff",
            input_background_fill_dark="#14171a",
            input_border_color="#8c8a84",
            input_border_color_dark="#666d75",
            input_border_color_focus="#0f766e",
            input_border_color_focus_dark="#5eead4",
            input_placeholder_color="#6b6f74",
            input_placeholder_color_dark="#969ba1",
            button_primary_background_fill="#0f766e",
            button_primary_background_fill_hover="#115e59",
            button_primary_background_fill_dark="#5eead4",
            button_primary_background_fill_hover_dark="#99f6e4",
            button_primary_text_color="#ffffff",
            button_primary_text_color_dark="#06231f",
            button_secondary_background_fill="#ffffff",
            button_secondary_background_fill_hover="#efece4",
            button_secondary_background_fill_dark="#262b30",
            button_secondary_background_fill_hover_dark="#343a41",
            button_secondary_border_color="#8c8a84",
            button_secondary_border_color_dark="#666d75",
            button_secondary_text_color="#22262a",
            button_secondary_text_color_dark="#e8e6e1",
            button_border_width="1px",
            slider_color="#0f766e",
            slider_color_dark="#5eead4",
            link_text_color="#0f766e",
            link_text_color_dark="#5eead4",
        )
