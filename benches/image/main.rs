//! Images of a GiB, each kind of work beside tools that do the least of it: `cargo bench --bench image`, a minute or two.
//!
//! All happens in the temporary directory: `TMPDIR=/some/file/system` measures another file system; it takes four times
//! the size of the image there. `BENCH_IMAGE_MIB=4096` measures others than the 1024 MiB. `-- verify` measures what has
//! that in its name. `b3sum`, `dd`, `cp` and `sync` are the tools: who has no `b3sum` is told so.

mod made;
#[path = "../support/plain.rs"]
mod plain;
#[path = "../collect/program.rs"]
mod program;
#[path = "../support/random.rs"]
mod random;
mod tools;

use std::time::Duration;

use camino::Utf8Path;

use made::{Made, Sparse};
use plain::{median, quantile, ratios, temporary, text};
use tools::{b3sum, copy, hash_and_sync, read_hash_write, sync_system};

/// One kind of work: what happens before each turn, and the turn of both sides.
struct Case {
    name: &'static str,
    beside: &'static str,
    /// Whether it is measured here.
    applies: fn(&Made) -> bool,
    store: fn(&Made) -> program::Took,
    floor: fn(&Made) -> Duration,
}

const CASES: [Case; 12] = [
    Case {
        name: "publish, copied",
        beside: "b3sum, while dd writes past the cache and syncs",
        applies: |made| !made.clones,
        store: Made::publish,
        floor: read_hash_write,
    },
    Case {
        name: "publish, copied",
        beside: "cp -a, then b3sum, then sync",
        applies: |made| !made.clones,
        store: Made::publish,
        floor: |made| copy(made) + sync_system(made) + b3sum(made),
    },
    Case { name: "publish, cloned", beside: "b3sum", applies: |made| made.clones, store: Made::publish, floor: b3sum },
    Case {
        name: "publish, moved in",
        beside: "b3sum, while sync writes the files",
        applies: |_| true,
        store: |made| made.publish_moved(Sparse::Always),
        floor: |made| hash_and_sync(made, Sparse::Always),
    },
    Case {
        name: "publish, moved in, zeros for holes",
        beside: "b3sum, while sync writes the files, with the zeros",
        applies: |_| true,
        store: |made| made.publish_moved(Sparse::Never),
        floor: |made| hash_and_sync(made, Sparse::Never),
    },
    Case {
        name: "publish what is there",
        beside: "b3sum",
        applies: |_| true,
        store: Made::publish_again,
        floor: b3sum,
    },
    Case {
        name: "reuse elsewhere",
        beside: "cp -a, not synced",
        applies: |made| !made.clones,
        store: Made::reuse,
        floor: copy,
    },
    Case { name: "verify, warm", beside: "b3sum", applies: |_| true, store: Made::verify, floor: b3sum },
    Case {
        name: "publish, 8 times as large, sparse",
        beside: "b3sum",
        applies: |_| true,
        store: Made::publish_sparse,
        floor: |made| tools::b3sum_of(&made.sparse()),
    },
    Case {
        name: "--version",
        beside: "true(1)",
        applies: |_| true,
        store: |made| made.run(&["--version"]),
        floor: tools::nothing,
    },
    Case {
        name: "lookup, by the program",
        beside: "true(1)",
        applies: |_| true,
        store: Made::lookup,
        floor: tools::nothing,
    },
    Case {
        name: "path, by the program",
        beside: "true(1)",
        applies: |_| true,
        store: |made| made.run(&["path", "web"]),
        floor: tools::nothing,
    },
];

/// The times of one case.
struct Row {
    case: &'static Case,
    store: Vec<Duration>,
    floor: Vec<Duration>,
    memory: Option<u64>,
}

impl Row {
    fn measure(case: &'static Case, made: &Made) -> Row {
        let mut row = Row { case, store: Vec::new(), floor: Vec::new(), memory: None };
        for round in 0..made.rounds {
            // Who comes second may find caches warm and queues full: each comes first as often.
            for store in [round % 2 == 0, round % 2 != 0] {
                made.settle();
                if store {
                    let took = (case.store)(made);
                    row.store.push(took.time);
                    row.memory = row.memory.max(took.memory);
                } else {
                    row.floor.push((case.floor)(made));
                }
            }
        }
        row
    }

    fn print(&self) {
        let ratios = ratios(&self.store, &self.floor);
        let (low, middle, high) = (quantile(&ratios, 0.25), quantile(&ratios, 0.5), quantile(&ratios, 0.75));
        println!(
            "{:<34} {:>6} {:>9} {:>9} {:>8} {:>17} {:>9}  {}",
            self.case.name,
            self.store.len(),
            text(median(&self.store)),
            text(median(&self.floor)),
            short(middle),
            format!("{} – {}", short(low), short(high)),
            self.memory.map_or_else(String::new, |bytes| format!("{:.1} MiB", bytes as f64 / 1048576.0)),
            self.case.beside,
        );
    }
}

fn short(ratio: f64) -> String {
    if ratio < 0.1 { format!("{ratio:.4}") } else { format!("{ratio:.2}") }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let measures = std::env::args().any(|arg| arg == "--bench");
    let (_temporary, dir) = temporary();
    if !tools::has_b3sum() {
        println!(
            "There is no b3sum here, and nothing to measure beside: `apt-get install b3sum` or `cargo install b3sum`."
        );
        return;
    }
    let mib = std::env::var("BENCH_IMAGE_MIB").map_or(1024, |mib| mib.parse().expect("BENCH_IMAGE_MIB is a number"));
    let (mib, rounds) = if measures { (mib, 7) } else { (8, 1) };
    let made = Made::new(&dir, mib, rounds);
    print_header(&made, &dir);
    let wanted = |case: &&Case| args.iter().all(|arg| arg.starts_with('-') || case.name.contains(arg.as_str()));
    for case in CASES.iter().filter(wanted).filter(|case| (case.applies)(&made)) {
        Row::measure(case, &made).print();
    }
}

fn print_header(made: &Made, dir: &Utf8Path) {
    println!(
        "\nA root file system of {} MiB, a quarter of it holes, and a kernel of {} MiB, in {dir}, where files {}.",
        made.rootfs_mib,
        made.kernel_mib,
        if made.clones { "can share blocks" } else { "can't share blocks" }
    );
    println!("The program, durable, beside other tools; medians by turns, and the middle half of the ratios.\n");
    println!(
        "{:<34} {:>6} {:>9} {:>9} {:>8} {:>17} {:>9}  the other",
        "", "rounds", "store", "other", "ratio", "middle half", "memory"
    );
}
