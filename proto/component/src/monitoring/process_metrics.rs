//! The process's own memory, processor time and file descriptors, read from `/proc` when scraped.

use prometheus::{
    Gauge, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use std::fs;

/// `/proc` counts in pages of 4 KiB and ticks of 10 ms on every Linux we run on.
const PAGE: f64 = 4096.0;
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) struct ProcessMetrics {
    resident: Gauge,
    virtual_size: Gauge,
    cpu: Gauge,
    threads: Gauge,
    open_files: Gauge,
    start: Gauge,
}

impl ProcessMetrics {
    pub(super) fn new() -> Self {
        let gauge = |name: &str, help: &str| {
            Gauge::with_opts(Opts::new(name, help)).expect("the names are valid")
        };
        Self {
            resident: gauge(
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
            ),
            virtual_size: gauge(
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
            ),
            cpu: gauge(
                "process_cpu_seconds_total",
                "User and system CPU time spent in seconds.",
            ),
            threads: gauge("process_threads", "Number of OS threads."),
            open_files: gauge("process_open_fds", "Number of open file descriptors."),
            start: gauge(
                "process_start_time_seconds",
                "Start time of the process since the epoch in seconds.",
            ),
        }
    }

    fn all(&self) -> [&Gauge; 6] {
        [
            &self.resident,
            &self.virtual_size,
            &self.cpu,
            &self.threads,
            &self.open_files,
            &self.start,
        ]
    }

    fn read(&self) -> Option<()> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The command's name, in parentheses, may hold spaces; fields are counted after it (the state is number 3).
        let fields: Vec<f64> = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0.0))
            .collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
        self.cpu.set((field(14) + field(15)) / TICKS_PER_SECOND);
        self.threads.set(field(20));
        self.virtual_size.set(field(23));
        self.resident.set(field(24) * PAGE);
        let open = fs::read_dir("/proc/self/fd").ok()?.count();
        self.open_files
            .set(u32::try_from(open).map_or(0.0, f64::from));
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = boot
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .parse()
            .ok()?;
        self.start.set(boot + field(22) / TICKS_PER_SECOND);
        Some(())
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Without /proc the gauges stay at zero.
        let _ = self.read();
        self.all()
            .into_iter()
            .flat_map(Collector::collect)
            .collect()
    }
}
