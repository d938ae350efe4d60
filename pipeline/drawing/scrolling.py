"""What is wider than its page scrolls sideways, and a shade marks each side on which there is more.

Phones show no scroll bar before one scrolls. The shades lie still on both sides, below covers that
scroll with the content: a cover hides its shade as long as the content's end is there.
"""


def scrolling_css(selector: str) -> str:
    """Styles of the elements that scroll. They take the colours ``--card``, which is behind them,
    and ``--shade``."""
    # No longhand follows the shorthand: Gradio would lose it as it writes styles anew.
    return f"""{selector} {{ overflow-x: auto; scrollbar-width: thin; background:
  linear-gradient(to right, var(--card) 60%, transparent) left / 36px 100% no-repeat local,
  linear-gradient(to left, var(--card) 60%, transparent) right / 36px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / 14px 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / 14px 100% no-repeat scroll,
  var(--card); }}
"""
