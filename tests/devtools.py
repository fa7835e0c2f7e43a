"""A browser, told what to do over a pipe in the DevTools protocol: for tests that press keys."""

import base64
import io
import json
import os
import subprocess

import numpy as np
from PIL import Image
from test_page import BROWSER, SWITCHES


class Devtools:
    """One page of it; to be closed in the end."""

    def __init__(self, profile):
        (reads, self.writes), (self.reads, writes) = os.pipe(), os.pipe()
        told = f'exec "$@" 3<&{reads} 4>&{writes} 2>/dev/null'
        command = [BROWSER, *SWITCHES.split(), "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(["bash", "-c", told, "browser", *command], pass_fds=(reads, writes))
        os.close(reads)
        os.close(writes)
        self.number, self.rest, self.events, self.session = 0, b"", [], {}
        (target,) = [t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        found = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = {"sessionId": found["sessionId"]}

    def __call__(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | self.session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def next(self):
        while b"\0" not in self.rest:
            got = os.read(self.reads, 1 << 16)
            assert got, "the browser is gone"
            self.rest += got
        first, _, self.rest = self.rest.partition(b"\0")
        return json.loads(first)

    def run(self, script):
        return self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get("value")

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def shot(self):
        shown = base64.b64decode(self("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(shown)).convert("L"), np.float64)

    def close(self):
        self("Browser.close")
        self.process.wait(30)
        os.close(self.reads)
        os.close(self.writes)
