"""What the installed cloud-init makes of a seed, as JSON.

Run with the directory of a seed and one to write files into. The code that
reads, parses, writes and quotes is cloud-init's own; only what would change this
machine (owners, programs that are run) is recorded instead of done.
"""
import json
import logging
import os
import sys

from cloudinit import helpers, util
from cloudinit.config import cc_users_groups, cc_write_files, cc_write_files_deferred
from cloudinit.distros import debian
from cloudinit.net import network_state
from cloudinit.sources import DataSourceNoCloud
from cloudinit.user_data import UserDataProcessor

seed, root = sys.argv[1:]
log = logging.getLogger()
cloud = os.path.join(root, "cloud")
os.makedirs(os.path.join(cloud, "seed"))
os.symlink(os.path.abspath(seed), os.path.join(cloud, "seed", "nocloud"))
paths = helpers.Paths({"cloud_dir": cloud, "run_dir": os.path.join(root, "run")})

# The data source, which takes nothing but the seed's directory for this.
util.find_devs_with = lambda *args, **kwargs: []
source = DataSourceNoCloud.DataSourceNoCloud({"datasource": {"NoCloud": {"fs_label": None}}}, None, paths)
DataSourceNoCloud.dmi.read_dmi_data = lambda key: None
DataSourceNoCloud.load_cmdline_data = lambda fill, cmdline=None: False
if not source._get_data():
    sys.exit("cloud-init finds no seed")

message = UserDataProcessor(paths).process(source.userdata_raw)
parts = [p for p in message.walk() if p.get_content_maintype() != "multipart"]
if [p.get_content_type() for p in parts] != ["text/cloud-config"]:
    sys.exit("not one cloud-config: %s" % [p.get_content_type() for p in parts])
cfg = util.load_yaml(parts[0].get_payload(decode=True))

# write_files, below root.
files = os.path.join(root, "files")
os.mkdir(files)
order, owners = [], {}
real_write = util.write_file


def write_file(path, content, omode="wb", mode=0o644):
    order.append(path)
    real_write(files + path, content, omode=omode, mode=mode)


cc_write_files.util.write_file = write_file
cc_write_files.util.chownbyname = lambda path, user, group: owners.update({path: "%s:%s" % (user, group)})


class Distro(debian.Distro):
    def __init__(self):
        self.default_owner = "root:root"
        self.ci_sudoers_fn = "/nonexistent"
        self._cfg = {}

    def get_option(self, name, default=None):
        return default


class Cloud:
    distro = Distro()

    def get_public_ssh_keys(self):
        return []


# users_groups, with the programs that it would run and the keys it would write.
programs, keys = [], {}
for module in (sys.modules["cloudinit.distros"],):
    module.subp.subp = lambda args, *rest, **kwargs: (programs.append(args), ("", ""))[1]
    module.util.is_user = lambda name: False
    module.util.is_group = lambda name: name in ("sudo", "mesosci")
    module.ssh_util.setup_user_keys = lambda k, user, options=None: keys.update({user: sorted(k)})

cc_write_files.handle("write_files", cfg, Cloud(), log, [])
cc_users_groups.handle("users_groups", cfg, Cloud(), log, [])
early = len(order)
cc_write_files_deferred.handle("write_files_deferred", cfg, Cloud(), log, [])

json.dump(
    {
        "metadata": source.metadata,
        "network": bool(source._network_config) and len(list(network_state.parse_net_config_data(source._network_config).iter_interfaces())),
        "order": order,
        "early": early,
        "owners": owners,
        "programs": programs,
        "keys": keys,
        "bootcmd": util.shellify(cfg.get("bootcmd", []), add_header=False),
        "runcmd": util.shellify(cfg.get("runcmd", [])),
        "packages": cfg.get("packages", []),
        "hostname": util.get_hostname_fqdn(cfg, Cloud())[:2] if "fqdn" in cfg else None,
    },
    sys.stdout,
)
