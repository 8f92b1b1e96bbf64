#!/usr/bin/env python3
"""What the tests use of Helm's command line, over the engine in the PyPI package helm-python-sdk.

    helm.py template|lint|install|upgrade|uninstall|list|dependency ... as Helm's own, with -n, -f and few other flags
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import helm_python
from helm_python import chart as charts


def merge(base, over):
    for key, value in over.items():
        if isinstance(base.get(key), dict) and isinstance(value, dict):
            merge(base[key], value)
        else:
            base[key] = value
    return base


def read_values(files):
    values = {}
    for name in files:
        text = sys.stdin.read() if name == "-" else Path(name).read_text()
        merge(values, charts.values_from_yaml(text) or {})
    return values


def dependencies(chart):
    """(name, folder) of the charts that a chart's Chart.yaml takes from beside it."""
    with_meta = charts.values_from_yaml((chart / "Chart.yaml").read_text())
    for item in with_meta.get("dependencies") or []:
        yield item["name"], (chart / item["repository"].removeprefix("file://")).resolve()


def build(chart, destination):
    """A chart with everything that it depends on inside: what lies beside it counts before what is in it already."""
    beside = [(name, folder) for name, folder in dependencies(chart) if folder.is_dir()]
    ignored = ["charts"] if beside else []
    shutil.copytree(chart, destination, ignore=shutil.ignore_patterns(*ignored))
    for name, folder in beside:
        shutil.copytree(folder, destination / "charts" / name, ignore=shutil.ignore_patterns("charts"))
    return destination


def main():
    parser = argparse.ArgumentParser(prog="helm")
    parser.add_argument("command", choices="template lint install upgrade uninstall list dependency version".split())
    parser.add_argument("names", nargs="*")
    parser.add_argument("-n", "--namespace", default="default")
    parser.add_argument("-f", "--values", action="append", default=[])
    parser.add_argument("--create-namespace", action="store_true")
    parser.add_argument("--kube-version", default="v1.34.0")
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--ignore-not-found", action="store_true")
    args = parser.parse_args()
    values = read_values(args.values)
    if args.command == "version":
        print("helm-python-sdk")
        return
    config = lambda: helm_python.Config(
        kubeconfig_path=os.environ.get("KUBECONFIG"), namespace=args.namespace
    )
    if args.command == "uninstall":
        config().uninstall(args.names[0], ignore_not_found=args.ignore_not_found)
        return
    if args.command == "list":
        for release in config().list():
            print(release["name"], release.get("namespace", ""), sep="\t")
        return
    source = Path(args.names[-1])
    with tempfile.TemporaryDirectory() as folder:
        chart = build(source, Path(folder) / "chart") if source.is_dir() else source
        if args.command == "dependency":
            packages = source / "charts"
            packages.mkdir(exist_ok=True)
            for name, dependency in dependencies(source):
                charts.Chart.load(str(dependency)).save(str(packages))
        elif args.command == "lint":
            report = charts.lint(str(chart), values, strict=True, namespace=args.namespace, kube_version=args.kube_version)
            bad = [m for m in report["messages"] if m["severity"] >= 2]
            for message in bad:
                print(message["path"], message["error"], file=sys.stderr)
            sys.exit(1 if bad or report["errors"] else 0)
        elif args.command == "template":
            loaded = charts.Chart.load(str(chart))
            rendered = loaded.render(values, name=args.names[0], namespace=args.namespace)
            for path, text in sorted(rendered.items()):
                if path.endswith(".yaml") and text.strip():
                    print(f"---\n# Source: {path}\n{text}")
        elif args.command == "install" or (args.install and not exists(config(), args.names[0])):
            config().install(
                str(chart), args.names[0], values, namespace=args.namespace,
                create_namespace=args.create_namespace, timeout=120,
            )
        else:
            config().upgrade(str(chart), args.names[0], values, namespace=args.namespace, reset_values=True, timeout=120)


def exists(config, name):
    try:
        config.status(name)
        return True
    except helm_python.HelmError:
        return False


if __name__ == "__main__":
    try:
        main()
    except helm_python.HelmError as error:
        sys.exit(f"Error: {error}")
