//! `dfs bench`: how fast a directory is, in a mount or anywhere else, and a local one beside it.
//!
//! Plain calls of the standard library, one after another, in a directory of its own that goes at
//! the end. A phase that takes too long is ended and its rate taken from what was done. Before the
//! cold read the mount's daemon drops what it keeps of the file, and the kernel what it has read.

mod cold;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dfs_proto::clock::{Clock, SystemClock};
use serde::Serialize;

use super::BenchArgs;
use super::failure::{Context, Failure};
use super::output::{Output, Report, Table};
use cold::Cold;

/// Longest time of a phase.
const PHASE_TIME_MAX: Duration = Duration::from_secs(30);

/// Piece of one call of read(2) and write(2). Units: bytes.
const PIECE_BYTES: usize = 1 << 20;

/// Size of a small file. Units: bytes.
const SMALL_FILE_BYTES: usize = 4096;

/// The figures of a directory, beside those of a local one.
#[derive(Debug, Serialize)]
struct Figures {
    dir: PathBuf,
    native: PathBuf,
    figures: Vec<Compared>,
}

#[derive(Debug, Serialize)]
struct Compared {
    #[serde(flatten)]
    figure: Figure,
    native_per_second: f64,
    /// Share of the local directory's speed.
    ratio: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Figure {
    name: &'static str,
    per_second: f64,
    unit: &'static str,
}

impl Report for Figures {
    fn table(&self) -> Table {
        let number = |per_second| match per_second {
            small if small < 100.0 => format!("{small:.1}"),
            large => format!("{large:.0}"),
        };
        let row = |compared: &Compared| {
            let Compared { figure, native_per_second, ratio } = compared;
            vec![
                figure.name.to_owned(),
                number(figure.per_second),
                number(*native_per_second),
                format!("{ratio:.3}"),
                format!("{}/s", figure.unit),
            ]
        };
        Table {
            header: vec!["what", "figure", "native", "ratio", "unit"],
            rows: self.figures.iter().map(row).collect(),
        }
    }
}

/// # Errors
/// A [`Failure`] if one of the directories cannot be worked in.
pub async fn bench(arguments: &BenchArgs, output: &mut Output) -> Result<(), Failure> {
    let dir = arguments.dir.clone();
    let native = arguments.native.clone().unwrap_or_else(std::env::temp_dir);
    let measured = measure(&dir, arguments, Cold::of(&dir), output).await?;
    let beside = measure(&native, arguments, Cold::Kernel, output).await?;
    if let Some(why) = measured.why_not_cold {
        output.note(&format!("a cold read was not measured: {why}"));
    }
    let compare = |figure: &Figure| {
        let native = beside.figures.iter().find(|native| native.name == figure.name)?;
        let native_per_second = native.per_second;
        let ratio = figure.per_second / native_per_second;
        Some(Compared { figure: figure.clone(), native_per_second, ratio })
    };
    let figures = measured.figures.iter().filter_map(compare).collect();
    output.show(&Figures { dir, native, figures })
}

async fn measure(
    dir: &Path,
    arguments: &BenchArgs,
    cold: Cold,
    output: &mut Output,
) -> Result<Measured, Failure> {
    let what = || format!("cannot measure {}", dir.display());
    let bench = Bench::begin(dir, arguments, cold).about(what)?;
    output.progress(&format!("measuring {}", bench.dir.display()));
    let measured = tokio::task::spawn_blocking(move || bench.run()).await;
    measured.map_err(io::Error::other).about(what)?.about(what)
}

struct Measured {
    figures: Vec<Figure>,
    why_not_cold: Option<String>,
}

struct Bench {
    dir: PathBuf,
    size_bytes: u64,
    file_count: u32,
    cold: Cold,
}

impl Bench {
    fn begin(dir: &Path, arguments: &BenchArgs, cold: Cold) -> io::Result<Bench> {
        let dir = dir.join(format!(".dfs-bench-{}", std::process::id()));
        fs::create_dir(&dir)?;
        Ok(Bench { dir, size_bytes: arguments.size.0, file_count: arguments.files, cold })
    }

    fn run(&self) -> io::Result<Measured> {
        let mut measured = self.run_large()?;
        self.run_small(&mut measured.figures)?;
        Ok(measured)
    }

    fn run_large(&self) -> io::Result<Measured> {
        let large = self.dir.join("large");
        let megabytes = |name, bytes: u64, took: Duration| Figure {
            name,
            per_second: bytes as f64 / 1e6 / took.as_secs_f64(),
            unit: "MB",
        };
        let (written, took) = timed(|until| self.write_large(&large, until))?;
        let mut figures = vec![megabytes("write a large file, with fsync", written, took)];
        let why_not_cold = self.cold.apply(&large).err();
        let (read, took) = timed(|until| read_large(&large, until))?;
        if why_not_cold.is_none() {
            figures.push(megabytes("read it cold", read, took));
        }
        let (read, took) = timed(|until| read_large(&large, until))?;
        figures.push(megabytes("read it warm", read, took));
        fs::remove_file(&large)?;
        Ok(Measured { figures, why_not_cold })
    }

    fn run_small(&self, figures: &mut Vec<Figure>) -> io::Result<()> {
        let small = |number: u32| self.dir.join(format!("small{number}"));
        let make = |path: &Path| File::create_new(path)?.write_all(&[b'x'; SMALL_FILE_BYTES]);
        let read = |path: &Path| fs::read(path).map(drop);
        let stat = |path: &Path| fs::metadata(path).map(drop);
        let remove = |path: &Path| fs::remove_file(path);
        type Work<'a> = &'a dyn Fn(&Path) -> io::Result<()>;
        let mut made = self.file_count;
        let phases: [(&str, Work<'_>); 4] = [
            ("make small files", &make),
            ("stat them", &stat),
            ("read them", &read),
            ("remove them", &remove),
        ];
        for (name, work) in phases {
            let (done, took) = timed(|until| each(made, until, |number| work(&small(number))))?;
            if name == phases[0].0 {
                made = done;
            }
            let per_second = f64::from(done) / took.as_secs_f64();
            figures.push(Figure { name, per_second, unit: "files" });
        }
        Ok(())
    }

    fn write_large(&self, path: &Path, until: Duration) -> io::Result<u64> {
        let piece: Vec<u8> = (0..PIECE_BYTES).map(|index| (index % 251) as u8).collect();
        let mut file = File::create_new(path)?;
        let mut written = 0;
        while written < self.size_bytes && SystemClock.boottime() < until {
            // Different in each place: a store that keeps equal content once is not to shine.
            let mut piece = piece.clone();
            piece[..8].copy_from_slice(&written.to_le_bytes());
            file.write_all(&piece)?;
            written += piece.len() as u64;
        }
        file.sync_all()?;
        Ok(written)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "what was measured with stays");
        }
    }
}

fn read_large(path: &Path, until: Duration) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut total = 0;
    while SystemClock.boottime() < until {
        match file.read(&mut piece)? {
            0 => break,
            count => total += count as u64,
        }
    }
    Ok(total)
}

/// Does `work` for each number below `count`; how many were done in time.
fn each(count: u32, until: Duration, work: impl Fn(u32) -> io::Result<()>) -> io::Result<u32> {
    for number in 0..count {
        if SystemClock.boottime() >= until {
            return Ok(number);
        }
        work(number)?;
    }
    Ok(count)
}

/// What `work`, which ends soon after the time it is given, did, and how long it took.
fn timed<T>(work: impl FnOnce(Duration) -> io::Result<T>) -> io::Result<(T, Duration)> {
    let start = SystemClock.boottime();
    let done = work(start + PHASE_TIME_MAX)?;
    let took = SystemClock.boottime().saturating_sub(start);
    Ok((done, took.max(Duration::from_micros(1))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ByteSize;

    fn measured_with(cold: Cold, dir: &Path) -> Measured {
        let (size, files) = (ByteSize(3 << 20), 5);
        let arguments = BenchArgs { dir: dir.to_owned(), size, files, native: None };
        Bench::begin(dir, &arguments, cold).unwrap().run().unwrap()
    }

    #[test]
    fn every_figure_is_measured_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let Measured { figures, why_not_cold } = measured_with(Cold::Kernel, dir.path());
        assert_eq!((figures.len(), why_not_cold), (7, None));
        assert!(figures.iter().all(|figure| figure.per_second > 0.0), "{figures:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_read_cold_is_said_and_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let measured = measured_with(Cold::Not("not yours".to_owned()), dir.path());
        assert_eq!(measured.why_not_cold.as_deref(), Some("not yours"));
        assert!(measured.figures.iter().all(|figure| figure.name != "read it cold"));
    }

    #[test]
    fn a_phase_that_takes_too_long_ends_with_what_was_done() {
        let done = each(10, Duration::ZERO, |_| Ok(())).unwrap();
        assert_eq!(done, 0);
        assert_eq!(each(10, Duration::MAX, |_| Ok(())).unwrap(), 10);
    }
}
