"""A worker that computes nothing: it logs its turns, and misbehaves as its job's options say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

job = json.loads(sys.stdin.readline())
options = job["options"]
name, runs = options["name"], 0


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


def log(event: str) -> None:
    with Path(options["log"]).open("a") as file:
        file.write(f"{name} {event}\n")


if "child" in options:  # as compilers have
    child = subprocess.Popen(["sleep", "600"])
    Path(options["child"]).write_text(f"{os.getpid()} {child.pid}")
if job["prepare"]:
    log("prepare")
    if "refuse" in options:
        say(failed=options["refuse"], known=True, unavailable="unavailable" in options)
        sys.exit(2)
    flops = [1e9] * len(job["workloads"]) if job["count_flops"] else []
    say(memory_peak=1, memory_running=None, flops=flops)
    sys.exit(0)
log("ready")
first = [0.5] * len(job["workloads"])
say(load=1.0, first_calls=first, memory_loaded=5, settings={"name": name}, versions={"fake": "1"})
for line in sys.stdin:
    command = json.loads(line)
    if command["finish"]:
        folder = Path(job["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(len(job["workloads"])):
            np.savez(folder / f"{index}.npz", np.full((1, 16, 16, 3), float(options["value"])))
        say(memory_peak=10**6, memory_running=10**6)
        break
    runs += 1  # noqa: SIM113 - some lines are no runs
    if options.get("die_at") == str(runs):
        print("the last words", file=sys.stderr)
        os._exit(3)
    if options.get("hang_at") == str(runs):
        time.sleep(600)
    log(f"run {command['run']}")
    say(seconds=float(options["seconds"]), cpu=0.1, idle_cpu=0.0, stages={"denoise": 0.05})
