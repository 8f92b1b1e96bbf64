//! The Pilot that is measured: a process of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::{Args, PATIENCE};

/// Clock ticks of /proc a second.
const TICKS: f64 = 100.0;

/// A running Pilot; it ends with this.
pub(super) struct Pilot {
    child: Child,
    /// Address of its xDS.
    pub(super) xds: String,
}

impl Drop for Pilot {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pilot {
    /// CPU-seconds so far.
    pub(super) fn cpu(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat
            .rsplit_once(") ")
            .context("stat")?
            .1
            .split(' ')
            .collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / TICKS)
    }

    /// A line of its memory in MiB.
    pub(super) fn memory(&self, key: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with(key))
            .context("status")?;
        let number = line.split_whitespace().nth(1).context("status")?;
        Ok(number.parse::<f64>()? / 1024.0)
    }
}

/// Pilot, ready.
pub(super) async fn start(args: &Args, folder: &Path, mcp: u16) -> anyhow::Result<Pilot> {
    let mesh = folder.join("mesh.yaml");
    let text = format!("configSources: [{{address: \"127.0.0.1:{mcp}\"}}]\n");
    std::fs::write(&mesh, text)?;
    let free = || {
        let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
        socket.local_addr().map(|address| address.to_string())
    };
    let (xds, http, monitoring) = (free()?, free()?, free()?);
    let child = Command::new(&args.pilot)
        .args(["discovery", "--registries", "MCP", "--secureGrpcAddr", ""])
        .args(["--mtlsGrpcAddr", "", "--log_output_level", "default:error"])
        .arg("--meshConfig")
        .arg(&mesh)
        .args(["--grpcAddr", &xds, "--httpAddr", &http])
        .args(["--monitoringAddr", &monitoring])
        .stdout(Stdio::null())
        .spawn()
        .context("start pilot-discovery")?;
    let pilot = Pilot { child, xds };
    wait_ready(&http).await?;
    Ok(pilot)
}

async fn wait_ready(address: &str) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(mut stream) = tokio::net::TcpStream::connect(address).await {
            stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            if answer.contains(" 200 ") {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("Pilot is not ready in time")
}
