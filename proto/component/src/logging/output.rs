//! Where log lines go: standard output, standard error, files, a rotated file; several at once.

use crate::{args::LogArgs, process::Usage};
use parking_lot::Mutex;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

enum Output {
    Stdout,
    Stderr,
    File(Mutex<File>),
    Rotated(Mutex<Rotated>),
}

/// A line goes to every output; one that fails does not keep the others from getting it.
#[derive(Clone)]
struct Outputs(Arc<Vec<Output>>);

struct Rotated {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
    max_age: Option<Duration>,
    max_backups: usize,
}

pub(super) fn writer(args: &LogArgs) -> Result<BoxMakeWriter, Usage> {
    let mut outputs = Vec::new();
    for target in &args.target {
        outputs.push(match target.as_str() {
            "stdout" => Output::Stdout,
            "stderr" => Output::Stderr,
            path => Output::File(Mutex::new(open(Path::new(path), "--log_target")?)),
        });
    }
    if let Some(path) = &args.rotate {
        let file = open(path, "--log_rotate")?;
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        let days = Duration::from_secs(args.rotate_max_age.saturating_mul(86_400));
        outputs.push(Output::Rotated(Mutex::new(Rotated {
            path: path.clone(),
            file,
            size,
            max_size: args.rotate_max_size.max(1),
            max_age: (!days.is_zero()).then_some(days),
            max_backups: args.rotate_max_backups,
        })));
    }
    let outputs = Outputs(Arc::new(outputs));
    Ok(BoxMakeWriter::new(move || outputs.clone()))
}

fn open(path: &Path, flag: &str) -> Result<File, Usage> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| Usage(format!("{flag} {}: {error}", path.display())))
}

impl Write for Outputs {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        for output in self.0.iter() {
            // There is no one to tell that logging fails.
            let _ = match output {
                Output::Stdout => io::stdout().write_all(line),
                Output::Stderr => io::stderr().write_all(line),
                Output::File(file) => file.lock().write_all(line),
                Output::Rotated(rotated) => rotated.lock().write(line),
            };
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

impl Rotated {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.size > 0 && self.size + length > self.max_size {
            self.rotate()?;
        }
        self.size += length;
        self.file.write_all(line)
    }

    /// Renames the file after the moment of rotation and removes what is too old or too much.
    fn rotate(&mut self) -> io::Result<()> {
        let stamp = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{stamp}"));
        fs::rename(&self.path, name)?;
        self.file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)?;
        self.size = 0;
        let mut backups = self.backups()?;
        backups.sort();
        let too_many = match self.max_backups {
            0 => 0,
            kept => backups.len().saturating_sub(kept),
        };
        for (index, backup) in backups.iter().enumerate() {
            let age = fs::metadata(backup)
                .and_then(|metadata| metadata.modified())
                .ok()
                .and_then(|modified| modified.elapsed().ok());
            let too_old = age.zip(self.max_age).is_some_and(|(age, max)| age > max);
            if index < too_many || too_old {
                fs::remove_file(backup)?;
            }
        }
        Ok(())
    }

    fn backups(&self) -> io::Result<Vec<PathBuf>> {
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let prefix = format!(
            "{}.",
            self.path.file_name().unwrap_or_default().to_string_lossy()
        );
        let mut backups = Vec::new();
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                backups.push(entry.path());
            }
        }
        Ok(backups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_rotated_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut rotated = Rotated {
            file: open(&path, "--log_rotate").unwrap(),
            path,
            size: 0,
            max_size: 10,
            max_age: None,
            max_backups: 2,
        };
        for _ in 0..5 {
            rotated.write(b"12345678\n").unwrap();
        }
        assert_eq!(rotated.backups().unwrap().len(), 2);
        assert_eq!(fs::read(&rotated.path).unwrap(), b"12345678\n");
    }
}
