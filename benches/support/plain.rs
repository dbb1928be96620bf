//! What every measurement needs.

use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

/// The time that some work takes.
pub fn time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

/// Lets the disk finish what was written before, so that nobody pays for what another left behind.
pub fn settle(dir: &Utf8Path) {
    rustix::fs::syncfs(std::fs::File::open(dir).unwrap()).unwrap();
}

/// A new directory below `$TMPDIR`.
pub fn temporary() -> (tempfile::TempDir, Utf8PathBuf) {
    let dir = tempfile::Builder::new().prefix("template-store-bench-").tempdir().unwrap();
    let path = Utf8Path::from_path(dir.path()).unwrap().canonicalize_utf8().unwrap();
    (dir, path)
}

pub fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The value that this part of all values is below.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

/// In seconds.
pub fn median(times: &[Duration]) -> f64 {
    quantile(&sorted(times.iter().map(Duration::as_secs_f64)), 0.5)
}

/// The ratios of each round: the same place of both lists is one.
pub fn ratios(store: &[Duration], floor: &[Duration]) -> Vec<f64> {
    sorted(store.iter().zip(floor).map(|(store, floor)| store.as_secs_f64() / floor.as_secs_f64()))
}

/// Seconds, for people.
pub fn text(seconds: f64) -> String {
    match seconds {
        10.0.. => format!("{seconds:.1} s"),
        1.0.. => format!("{seconds:.2} s"),
        0.1.. => format!("{:.0} ms", seconds * 1e3),
        0.001.. => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{:.1} µs", seconds * 1e6),
    }
}
