"""A JupyterLab server of one's own, and the few gestures a browser makes in it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, seen or not
}
OWN = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython",
       "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
DIES_ALONE = ["--ServerApp.shutdown_no_activity_timeout=600", "--MappingKernelManager.cull_idle_timeout=600",
              "--MappingKernelManager.cull_interval=60"]  # should the tests be killed before they can stop it
READY = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    const cells = panel?.context?.isReady ? panel.content.widgets : [];
    return panel?.sessionContext?.session?.kernel?.status === "idle" && cells.length === panel.context.model.cells?.length
        && cells.length > 0 && panel.node.querySelector(".jp-Cell") !== null;
}"""


class Lab:
    "JupyterLab over `root`, a folder that tests fill; nothing of the user's own Jupyter is read or written."

    def __init__(self, folder: Path):
        self.folder, self.root, self.token = folder, folder / "root", os.urandom(12).hex()
        self.root.mkdir(parents=True)
        with socket.socket() as free: free.bind(("127.0.0.1", 0)); self.port = free.getsockname()[1]
        for name, values in SETTINGS.items(): self._write(f"settings/{name}.jupyterlab-settings", values)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self._write("data/kernels/python3/kernel.json", {"argv": argv, "display_name": "python3", "language": "python"})
        self.process = None

    def _write(self, name: str, values: dict) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))

    def start(self) -> Lab:
        "Start the server and wait until it answers."
        env = os.environ | {name: str(self.folder / at) for name, at in OWN.items()} | {"JUPYTER_PREFER_ENV_PATH": "0"}
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
                   "--ip=127.0.0.1", f"--port={self.port}", "--ServerApp.port_retries=0",
                   f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}", "--LabApp.news_url=",
                   *DIES_ALONE]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, env=env, cwd=self.root, stdout=log, stderr=log, start_new_session=True)
        for _ in range(600):
            if self.process.poll() is not None: break
            try: self.api("status"); return self
            except OSError: time.sleep(0.1)
        raise RuntimeError("JupyterLab did not start:\n" + (self.folder / "server.log").read_text()[-3000:])

    def stop(self) -> None:
        "End the server and every kernel with it."
        if self.process is None: return
        try:
            for kernel in self.api("kernels"): self.api(f"kernels/{kernel['id']}", method="DELETE")
        except OSError: pass  # it may be dead already
        self.process.terminate()
        try: self.process.wait(20)
        except subprocess.TimeoutExpired: self.process.kill(); self.process.wait()
        self.process = None

    def restart(self) -> Lab:
        "Stop and start on the same port: files stay, kernels and their memory do not."
        self.stop()
        return self.start()

    def api(self, path: str, method: str = "GET"):
        "The answer of Jupyter's REST interface."
        headers = {"Authorization": f"token {self.token}"}
        request = Request(f"http://127.0.0.1:{self.port}/api/{path}", method=method, headers=headers)
        with urlopen(request, timeout=20) as answer: text = answer.read()
        return json.loads(text) if text else None

    def add(self, notebook: Path, name: str | None = None) -> str:
        "A copy of `notebook` under the root; its path there."
        name = name or Path(notebook).name
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(notebook, self.root / name)
        return name

    def open(self, page, name: str, timeout: float = 60) -> None:
        "Open one notebook, alone, and wait until it is shown and its kernel is ready."
        page.goto(f"http://127.0.0.1:{self.port}/lab/tree/{name}?token={self.token}&reset", timeout=1000 * timeout)
        page.wait_for_function(READY, timeout=1000 * timeout)

    def run_all(self, page, timeout: float = 120) -> bool:
        "Run every cell of the open notebook; False if one failed."
        start = "run => { window.ran = null; window.jupyterapp.commands.execute(run).then(ok => { window.ran = [ok]; }); }"
        page.evaluate(start, "notebook:run-all-cells")
        page.wait_for_function("window.ran", timeout=1000 * timeout)
        return page.evaluate("window.ran[0]")

    def save(self, page, name: str) -> dict:
        "Save the open notebook; its content as written."
        page.evaluate("() => { window.jupyterapp.commands.execute('docmanager:save'); }")
        page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty", timeout=20_000)
        return json.loads((self.root / name).read_text())
