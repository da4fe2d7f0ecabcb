"""What strangers write where text is shown: each would do something if the medium took it for more than text."""

from typing import Final

HOSTILE: Final = (
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07\x1b]8;;http://example.com/\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m\x9d0;title\x9c\x85",
    "\x00\x08\x7f",
    "a\u202egnp.exe\u2066b\u2069\u200f",
    "one\ntwo\r\nthree\rfour\u2028five\u2029six\x0bseven\x0ceight",
    "[bold]b[/bold] [link=http://example.com/]l[/link] [/] :smile:",
    "{0} {name} %s %(name)s",
    "[link](http://example.com/) ![picture](http://example.com/x.png)",
    "<img src=http://example.com/x.png onerror=alert(1)><script>alert(1)</script><!-- ",
    "</text></svg><script>alert(1)</script>",
    '" onload="alert(1)',
    "http://example.com/ www.example.com <http://example.com/> someone@example.com",
    "a | b |\n| --- | --- |\n| c | d",
    "\\| \\` \\",
    "``` mermaid\nx\n```",
    "` `` ```",
    "# heading\n- list\n> quote\n\n    code",
    "&lt;b&gt; &#60;b&#62;",
    "[a]: http://example.com/",
    "name \udcff\udc80 of no UTF-8",
    "\ud800 half of a pair",
)

MARKS: Final = ("\x1b", "\x07", "\x08", "\x7f", "\x9b", "\x9d", "\r", "\u202e", "\u2028", "\x0b")
"""What may stand in no output. Of a line break it depends on whether the line is shown to its end."""
