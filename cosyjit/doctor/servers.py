"""The Prefect server and the hubs that would be asked, and whether they answer."""

from collections.abc import Iterator
from functools import partial
from typing import Final

import requests
from requests.exceptions import ConnectTimeout, ProxyError, ReadTimeout, SSLError

from cosyjit.doctor.children import asked
from cosyjit.doctor.finding import Finding, Probe, shown
from cosyjit.sources import hugging_face, modelscope

_PREFECT: Final = 60.0
"""In s, how long the process may take that imports Prefect and asks its server."""

_ANSWER: Final = 4.0
"""In s, how long a hub may take to connect, and then to answer."""

_HUB: Final = 15.0
"""In s, for all of that: names may be looked up slowly."""


def probes() -> list[Probe]:
    return [
        Probe("prefect", "server", _prefect, _PREFECT),
        Probe("hubs", modelscope.TITLE, _modelscope, _HUB, "note"),
        Probe("hubs", hugging_face.TITLE, _hugging_face, _HUB, "note"),
    ]


def _prefect() -> Iterator[Finding]:
    found = asked("cosyjit.flows.look", _PREFECT)
    yield Finding("prefect", "profile", found["profile"])
    yield Finding("prefect", "home", shown(found["home"]))
    if found["server"] is None:
        yield Finding("prefect", "server", None, "ok", "none is named; a run or `cosyjit serve` starts one of its own")
        return
    yield Finding("prefect", "server", found["server"], "wrong" if found["problem"] else "ok", found["problem"] or "")
    if found["version"]:
        yield Finding("prefect", "server's version", found["version"])


def _modelscope() -> Iterator[Finding]:
    yield _answer(modelscope.TITLE, modelscope.endpoint())


def _hugging_face() -> Iterator[Finding]:
    if hugging_face.is_offline():
        advice = "is not asked, since HF_HUB_OFFLINE is set"
        yield Finding("hubs", hugging_face.TITLE, hugging_face.endpoint(), "ok", advice)
    else:
        yield _answer(hugging_face.TITLE, hugging_face.endpoint())


def _answer(name: str, url: str) -> Finding:
    """Whether a hub answers anything at all; nothing but its address is sent."""
    finding = partial(Finding, "hubs", name, url)
    try:
        # With an authorization of our own, requests looks for none in ~/.netrc.
        with requests.get(
            url, timeout=_ANSWER, allow_redirects=False, stream=True, auth=lambda request: request
        ) as answer:
            status = answer.status_code
    except (requests.RequestException, ValueError) as error:
        return finding(
            "note", f"{_problem(error)}; models by id cannot be downloaded, those in directories can be used"
        )
    if status >= requests.codes.server_error:
        return finding("note", f"answers with HTTP {status}; try again later")
    return finding()


def _problem(error: Exception) -> str:
    kinds = {
        SSLError: "there is no TLS connection; REQUESTS_CA_BUNDLE names trusted certificates",
        ProxyError: "the proxy of https_proxy or http_proxy does not answer",
        ConnectTimeout: f"there is no connection within {_ANSWER:g} s",
        ReadTimeout: f"there is no answer within {_ANSWER:g} s",
        requests.ConnectionError: "there is no connection",
    }
    return next((words for kind, words in kinds.items() if isinstance(error, kind)), "is not a URL that can be asked")
