//! Memory of a local mesh's processes, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context as _;

const KIBIBYTES_PER_MEBIBYTE: f64 = 1024.0;

/// Memory of the processes of one kind; the largest counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// How many processes of that kind run.
    pub count: usize,
    /// Resident set of the largest, MiB.
    pub resident: f64,
    /// Its anonymous part: what the program allocated, without its text and files. MiB.
    pub anonymous: f64,
}

/// Memory of each kind of process of the local mesh `name`: `pilot-discovery`, `mixs policy`, `pilot-agent sidecar`, …
///
/// # Errors
/// When the mesh does not run or `/proc` cannot be read.
pub fn of_mesh(name: &str) -> anyhow::Result<BTreeMap<String, Memory>> {
    let state = Path::new("/run/bireme/local")
        .join(name)
        .join("daemon.json");
    let text = fs::read_to_string(&state).with_context(|| format!("read {}", state.display()))?;
    let daemon: serde_json::Value = serde_json::from_str(&text).context("parse daemon.json")?;
    let mark = format!(
        "BIREME_MESH={}",
        daemon["mesh_id"].as_str().context("mesh_id")?
    );
    let mut kinds: BTreeMap<String, Memory> = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let process = entry.context("read /proc")?.path();
        // A process may end while it is looked at; then it does not count.
        let Some((kind, resident, anonymous)) = look(&process, &mark) else {
            continue;
        };
        let memory = kinds.entry(kind).or_default();
        memory.count += 1;
        if resident > memory.resident {
            (memory.resident, memory.anonymous) = (resident, anonymous);
        }
    }
    Ok(kinds)
}

fn look(process: &Path, mark: &str) -> Option<(String, f64, f64)> {
    let environment = fs::read(process.join("environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    if !variables.any(|variable| variable == mark.as_bytes()) {
        return None;
    }
    let command = fs::read(process.join("cmdline")).ok()?;
    let words: Vec<String> = command
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let status = fs::read_to_string(process.join("status")).ok()?;
    let mebibytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        let kibibytes: f64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kibibytes / KIBIBYTES_PER_MEBIBYTE)
    };
    Some((kind(&words)?, mebibytes("VmRSS:")?, mebibytes("RssAnon:")?))
}

/// What tells the processes of one program apart: Mixer's half, the agent's role.
fn kind(words: &[String]) -> Option<String> {
    let program = Path::new(words.first()?)
        .file_name()?
        .to_string_lossy()
        .into_owned();
    let role = words[1..].iter().map(String::as_str).find(|word| {
        matches!(*word, "sidecar" | "router")
            || word.contains("policy")
            || word.contains("telemetry")
    });
    let role = role.map(|word| match word {
        "sidecar" | "router" => word,
        word if word.contains("policy") => "policy",
        _ => "telemetry",
    });
    Some(role.map_or(program.clone(), |role| format!("{program} {role}")))
}
