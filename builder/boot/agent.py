# Tells whoever booted this machine what came up, and runs what they ask for.
# It comes in the vendor-data of a boot's own seed; an image doesn't have it.
import glob
import json
import os
import re
import socket
import subprocess
import threading
import time

UNITS = @UNITS@
PORT = "/dev/virtio-ports/org.kiln.boot"  # of a virtual machine
SOCKET = "/run/kiln-boot/agent.sock"  # of a container
SETTLING = 180  # seconds that units may take after the boot

PROPERTIES = {
    "LoadState": "load", "ActiveState": "active", "SubState": "sub", "Result": "result", "Type": "type",
    "ConditionResult": "condition", "AssertResult": "assert", "NRestarts": "restarts",
    "ExecMainStartTimestampMonotonic": "started",
}


def output(*argv):
    try:
        p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return ""
    return p.stdout.decode(errors="replace")


class Channel:
    """Lines of JSON to and from the machine that this one was booted on."""

    def __init__(self):
        self.lock = threading.Lock()
        for _ in range(240):
            if os.path.exists(PORT):
                self.fd = os.open(PORT, os.O_RDWR)
                return
            if os.path.exists(SOCKET):
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.connect(SOCKET)
                self.fd = self.sock.fileno()
                return
            time.sleep(0.25)
        raise OSError("neither " + PORT + " nor " + SOCKET + " is there")

    def send(self, message):
        data = json.dumps(message).encode() + b"\n"
        with self.lock:
            while data:
                data = data[os.write(self.fd, data):]

    def lines(self):
        rest = b""
        while True:
            got = os.read(self.fd, 65536)
            if not got:
                if hasattr(self, "sock"):
                    return
                time.sleep(0.5)
            *whole, rest = (rest + got).split(b"\n")
            yield from whole


def serve(channel):
    def answer(request):
        try:
            p = subprocess.run(["/bin/sh", "-c", request["script"]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, timeout=request.get("timeout"), cwd="/")
            status, out = p.returncode, p.stdout
        except subprocess.TimeoutExpired as e:
            status, out = -1, e.output or b""
        except OSError as e:
            status, out = -1, str(e).encode()
        channel.send({"id": request["id"], "status": status, "output": out.decode(errors="replace")})

    for line in channel.lines():
        try:
            request = json.loads(line)
        except ValueError:
            continue
        threading.Thread(target=answer, args=(request,), daemon=True).start()


def show(name):
    text = output("systemctl", "show", "--property=" + ",".join(PROPERTIES), "--", name)
    unit = {v: "" for v in PROPERTIES.values()}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key in PROPERTIES:
            unit[PROPERTIES[key]] = value
    return {
        "load": unit["load"], "active": unit["active"], "sub": unit["sub"], "result": unit["result"], "type": unit["type"],
        "unmet": "no" in (unit["condition"], unit["assert"]) and unit["active"] == "inactive",
        "restarts": int(unit["restarts"] or 0), "ran": unit["started"] not in ("", "0"),
    }


def boot_over():
    """Waits for the end of the boot, and gives the time until when units may settle.

    A unit that is restarted over and over keeps systemd from calling the boot
    over: it counts as that some time after cloud-init's end.
    """
    end = None
    while output("systemctl", "is-system-running").strip() in ("initializing", "starting", ""):
        if end is None and os.path.exists("/run/cloud-init/result.json"):
            end = time.monotonic() + SETTLING
        if end is not None and time.monotonic() > end:
            return end
        time.sleep(2)
    return end or time.monotonic() + SETTLING


def settle(end):
    """The units' states once they change no more."""
    before = None
    while True:
        units = {name: show(name) for name in UNITS}
        moving = any(u["active"] in ("activating", "deactivating", "reloading") for u in units.values())
        busy = output("systemctl", "list-jobs", "--no-legend", "--plain").strip()
        if time.monotonic() > end or units == before and not moving and not busy:
            return units
        before = units
        time.sleep(3)


def journal(unit):
    return output("journalctl", "--boot", "--no-pager", "--quiet", "--output=cat", "--lines=40", "--unit=" + unit).splitlines()


def cloud_init():
    status = {"done": False, "datasource": "", "errors": []}
    try:
        with open("/run/cloud-init/result.json") as f:
            v1 = json.load(f)["v1"]
        status["done"] = True
        status["datasource"] = v1.get("datasource") or ""
        status["errors"] += v1.get("errors") or []
    except (OSError, ValueError, KeyError):
        pass
    # Some versions say what went wrong only where they log.
    argv = ["journalctl", "--boot", "--no-pager", "--quiet", "--output=cat"]
    for stage in ("cloud-init-local", "cloud-init", "cloud-init-network", "cloud-config", "cloud-final"):
        argv += ["--unit=" + stage + ".service"]
    for line in output(*argv).splitlines():
        found = re.search(r"\[(?:WARNING|ERROR|CRITICAL)\]: (.*)", line)
        if found:
            status["errors"].append(found.group(1))
    status["errors"] = list(dict.fromkeys(status["errors"]))
    return status


def addresses():
    found = {}
    try:
        links = json.loads(output("ip", "-json", "address") or "[]")
    except ValueError:
        links = []
    for link in links:
        if link.get("ifname") in (None, "lo"):
            continue
        found[link["ifname"]] = ["%s/%d" % (a["local"], a["prefixlen"]) for a in link.get("addr_info", [])
                                 if a.get("scope") == "global" and "local" in a]
    return found


def machine_id():
    try:
        with open("/etc/machine-id") as f:
            return f.read().strip()
    except OSError:
        return ""


def report():
    units = settle(boot_over())
    failed = [line.split()[0] for line in
              output("systemctl", "list-units", "--failed", "--plain", "--no-legend", "--full").splitlines() if line.split()]
    wanted = failed + [name for name, u in units.items() if u["active"] != "active" and u["load"] == "loaded"]
    root = os.statvfs("/")
    return {
        "state": output("systemctl", "is-system-running").strip(),
        "failed": failed,
        "units": units,
        "journals": {name: journal(name) for name in dict.fromkeys(wanted)},
        "cloudInit": cloud_init(),
        "hostname": socket.gethostname(),
        "machineID": machine_id(),
        "addresses": addresses(),
        "rootSize": root.f_blocks * root.f_frsize,
        "kernel": os.uname().release,
        "firmware": "uefi" if os.path.isdir("/sys/firmware/efi") else "bios",
        "secureBoot": secure_boot(),
    }


def secure_boot():
    for path in glob.glob("/sys/firmware/efi/efivars/SecureBoot-*"):
        try:
            with open(path, "rb") as f:
                return f.read()[4:5] == b"\x01"
        except OSError:
            pass
    return False


def main():
    try:
        channel = Channel()
    except OSError as e:
        print("nobody to report to:", e)
        return
    channel.send({"hello": True})
    threading.Thread(target=lambda: channel.send({"report": report()}), daemon=True).start()
    serve(channel)


main()
