"""Write what is generated into the pages, and check their links: python -m docs."""

import sys

from docs import generated, links


def main() -> int:
    """Return 1 when a link of a page leads nowhere."""
    faults = []
    for page in links.pages():
        text = page.read_text(encoding="utf-8")
        if (new := generated.regenerated(text)) != text:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{page.name} is written anew\n")
        faults += links.broken(page)
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
