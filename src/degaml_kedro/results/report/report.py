"""The report: one document, written as a page and as Markdown."""

from __future__ import annotations

from degaml_kedro.results.report.accuracy import comparison
from degaml_kedro.results.report.calibration import calibration
from degaml_kedro.results.report.costs import compute
from degaml_kedro.results.report.document import Document
from degaml_kedro.results.report.findings import Findings
from degaml_kedro.results.report.glossary import glossary
from degaml_kedro.results.report.learning import generator, policy, strategies
from degaml_kedro.results.report.markdown import markdown_text
from degaml_kedro.results.report.page import html_page
from degaml_kedro.results.report.printed import beside_paper, paper_appendix
from degaml_kedro.results.report.reproduction import reproduction
from degaml_kedro.results.report.search import settings
from degaml_kedro.results.report.summary import summary
from degaml_kedro.results.report.words import counted

# the page's file name, which the Markdown points to
PAGE = "report.html"


def write(findings: Findings) -> tuple[str, str]:
    """Write the report of runs.

    Args:
        findings: the statistics of runs.

    Returns:
        An HTML page that holds all it needs, and Markdown with the same numbers.
    """
    document = report(findings)
    return html_page(document), markdown_text(document, PAGE)


def report(findings: Findings) -> Document:
    """Put the report together.

    Args:
        findings: the statistics of runs.
    """
    runs = findings.runs
    frame = findings.comparison()
    return Document(
        "DeGAML and the methods it is compared with",
        f"Profile {runs.runs[0].profile}, {counted(len(runs.runs), 'seed')}, "
        f"{counted(len(runs.methods), 'method')}",
        (
            summary(findings),
            comparison(findings, frame),
            beside_paper(findings),
            compute(findings, frame),
            calibration(findings, findings.bins()),
            strategies(findings),
            policy(findings),
            generator(findings),
            settings(findings),
            reproduction(findings),
            glossary(runs.methods),
            paper_appendix(),
        ),
    )
