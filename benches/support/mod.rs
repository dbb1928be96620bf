//! Two ways to do the same work, measured by turns.

mod plain;
mod random;

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use criterion::{Criterion, SamplingMode};

use plain::{median, quantile, ratios, temporary, text};
pub use plain::{settle, time};
pub use random::Random;

/// Does the work once; gives the time that it took, without what came before and after.
pub type Timed = Box<dyn FnMut() -> Duration>;

/// The store's way and the floor's.
pub struct Pair {
    pub store: Timed,
    pub floor: Timed,
}

/// One kind of work.
pub struct Case {
    pub group: &'static str,
    pub name: &'static str,
    /// How often both take a turn for the table.
    pub rounds: usize,
    /// Prepares both in an empty directory.
    pub prepare: fn(&Utf8Path) -> Pair,
}

/// Times of one case: the same place of both lists is one round.
struct Row {
    name: String,
    store: Vec<Duration>,
    floor: Vec<Duration>,
}

/// Measures each case by turns, then with criterion, and prints how the two compare.
///
/// Criterion measures one side after the other, which shows how a side changes from day to day; on a machine
/// that others use too, only turns are fair to both. What was made stays until the end: on ext4, inodes that
/// were freed a moment ago make it slow to find a free one.
pub fn run(cases: &[Case]) {
    let (_temporary, dir) = temporary();
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
        .configure_from_args();
    let mut rows = Vec::new();
    for case in cases {
        let mut prepared = Prepared { case, dir: dir.join(format!("{}-{}", case.group, case.name)), pair: None };
        measure(&mut criterion, &mut prepared);
        rows.extend(prepared.pair.and_then(|(_, row)| row));
    }
    criterion.final_summary();
    print(&rows, &dir);
}

/// A case that is prepared, and measured by turns, when criterion first asks for it: a filter may leave it out.
struct Prepared<'a> {
    case: &'a Case,
    dir: Utf8PathBuf,
    pair: Option<(Pair, Option<Row>)>,
}

impl Prepared<'_> {
    fn pair(&mut self) -> &mut Pair {
        let (pair, _) = self.pair.get_or_insert_with(|| {
            std::fs::create_dir(&self.dir).unwrap();
            let mut pair = (self.case.prepare)(&self.dir);
            let row = by_turns().then(|| Row::take(self.case, &mut pair));
            (pair, row)
        });
        pair
    }
}

fn measure(criterion: &mut Criterion, prepared: &mut Prepared) {
    let Case { group, name, .. } = prepared.case;
    let mut group = criterion.benchmark_group(*group);
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function(format!("{name}/store"), |bencher| {
        let pair = prepared.pair();
        bencher.iter_custom(|times| (0..times).map(|_| (pair.store)()).sum());
    });
    group.bench_function(format!("{name}/floor"), |bencher| {
        let pair = prepared.pair();
        bencher.iter_custom(|times| (0..times).map(|_| (pair.floor)()).sum());
    });
    group.finish();
}

/// Whether this is a measurement: `cargo test` runs each benchmark once, and some flags run none.
fn by_turns() -> bool {
    let words: Vec<String> = std::env::args().collect();
    let has = |flag: &str| words.iter().any(|word| word == flag);
    has("--bench") && !has("--test") && !has("--profile-time")
}

impl Row {
    fn take(case: &Case, pair: &mut Pair) -> Row {
        let (mut store, mut floor) = (Vec::new(), Vec::new());
        for round in 0..case.rounds {
            // Who comes second may find caches warm and queues full: each comes first as often.
            if round % 2 == 0 {
                store.push((pair.store)());
                floor.push((pair.floor)());
            } else {
                floor.push((pair.floor)());
                store.push((pair.store)());
            }
        }
        Row { name: format!("{}/{}", case.group, case.name), store, floor }
    }
}

fn print(rows: &[Row], dir: &Utf8Path) {
    if rows.is_empty() {
        return;
    }
    println!("\nThe store beside a floor of plain system calls, by turns, in {dir}: medians,");
    println!("and the middle half of the ratios of each round.\n");
    println!("{:<26} {:>7} {:>11} {:>11} {:>7} {:>15}", "", "rounds", "store", "floor", "ratio", "middle half");
    for row in rows {
        let ratios = ratios(&row.store, &row.floor);
        let (low, middle, high) = (quantile(&ratios, 0.25), quantile(&ratios, 0.5), quantile(&ratios, 0.75));
        println!(
            "{:<26} {:>7} {:>11} {:>11} {middle:>7.2} {:>15}",
            row.name,
            row.store.len(),
            text(median(&row.store)),
            text(median(&row.floor)),
            format!("{low:.2} – {high:.2}"),
        );
    }
}

/// What a builder leaves: a kernel, a root file system, a configuration.
#[derive(Clone)]
pub struct Image {
    kernel: Vec<u8>,
    rootfs: Vec<u8>,
}

pub const FILES: [&str; 3] = ["fc-base.json", "rootfs.ext4", "vmlinux"];

impl Image {
    pub fn new(kernel: usize, rootfs: usize) -> Image {
        let mut random = Random::new();
        let mut bytes = |len: usize| (0..len / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        Image { kernel: bytes(kernel), rootfs: bytes(rootfs) }
    }

    /// Makes the bytes of all files others than before.
    pub fn number(&mut self, number: u64) {
        self.kernel[..8].copy_from_slice(&number.to_le_bytes());
        self.rootfs[..8].copy_from_slice(&number.to_le_bytes());
    }

    /// Writes the files as a builder does: nothing is synced.
    pub fn write(&self, dir: &Utf8Path) {
        std::fs::write(dir.join("vmlinux"), &self.kernel).unwrap();
        std::fs::write(dir.join("rootfs.ext4"), &self.rootfs).unwrap();
        std::fs::write(dir.join("fc-base.json"), r#"{"machine-config":{"vcpu_count":2,"mem_size_mib":512}}"#).unwrap();
    }
}
