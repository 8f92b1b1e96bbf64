#!/usr/bin/env python3
"""Draws what `pilot_load` measured: JSON lines on standard input, an SVG on standard output.

The left column has runs of increments with 1,000 services by the number of proxies, the right one runs with 100 proxies by the
number of services. Every chart begins at zero, so that a straight line through the origin is a linear cost.
"""

import json, sys

WIDTH, HEIGHT, LEFT, TOP = 360, 200, 70, 40
CHARTS = [
    ("full load, CPU-seconds", lambda r: r["load"]["cpu_s"]),
    ("one route change, CPU-seconds", lambda r: r["virtual_service"]["cpu_s"]),
    ("one endpoint change, CPU-seconds", lambda r: r["endpoint"]["cpu_s"]),
    ("resident memory, MiB", lambda r: r["rss_mib"]["loaded"]),
]


def chart(x, y, title, label, points):
    """One chart; `points` are pairs, at least one."""
    wide, high = WIDTH - LEFT - 20, HEIGHT - TOP - 40
    most_x, most_y = (max(v) or 1 for v in zip(*points))
    at = lambda p: (x + LEFT + wide * p[0] / most_x, y + TOP + high * (1 - p[1] / most_y))
    line = " ".join("%.1f,%.1f" % at(p) for p in sorted(points))
    out = [f'<text x="{x + LEFT}" y="{y + 24}" font-weight="bold">{title}</text>',
           f'<path d="M{x + LEFT},{y + TOP} v{high} h{wide}" fill="none" stroke="#888"/>',
           f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>',
           f'<text x="{x + LEFT - 6}" y="{y + TOP + 4}" text-anchor="end">{most_y:.3g}</text>',
           f'<text x="{x + LEFT - 6}" y="{y + TOP + high}" text-anchor="end">0</text>',
           f'<text x="{x + LEFT + wide}" y="{y + TOP + high + 34}" text-anchor="end">{label}</text>']
    for point in points:
        px, py = at(point)
        out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="#06c"/>')
        out.append(f'<text x="{px:.1f}" y="{y + TOP + high + 16}" text-anchor="middle">{point[0]}</text>')
    return out


def main():
    runs = [json.loads(line) for line in sys.stdin if line.strip()]
    columns = [
        ("proxies", [r for r in runs if r["delta"] and r["services"] == 1000 and r["proxies"] != 100], "proxies (1,000 services)"),
        ("services", [r for r in runs if r["delta"] and r["proxies"] == 100], "services (100 proxies)"),
    ]
    width, height = WIDTH * len(columns), HEIGHT * len(CHARTS)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for column, (key, chosen, label) in enumerate(columns):
        if not chosen:
            continue
        for row, (title, value) in enumerate(CHARTS):
            out += chart(column * WIDTH, row * HEIGHT, title, label, [(r[key], value(r)) for r in chosen])
    print("\n".join([*out, "</svg>"]))


if __name__ == "__main__":
    main()
