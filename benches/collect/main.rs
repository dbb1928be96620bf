//! Work on whole stores of many small revisions, each kind beside a floor of plain system calls:
//! `cargo bench --bench collect`, some minutes.
//!
//! All happens in the temporary directory: `TMPDIR=/some/file/system` measures another file system.
//! `BENCH_REVISIONS=1000,10000,100000` measures stores of so many revisions; the last takes most of an hour, and 3 GiB.
//! Root also measures some with cold caches, as after a reboot. `-- verify` measures what has that in its name. `-- --make DIR COUNT` only makes such a store.

mod floor;
mod made;
#[path = "../support/plain.rs"]
mod plain;
mod program;

use std::ffi::CStr;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use template_store::Store;
use template_store::gc::{GcPlan, Policy};

use made::{Made, OLD, TEMPLATES};
use plain::{median, quantile, ratios, settle, temporary, text, time};
use program::Took;

/// One kind of work.
struct Case {
    name: &'static str,
    /// What the floor does for it.
    beside: &'static str,
    /// Whether it removes the older half.
    removes: bool,
    /// Whether nothing is in memory, as after a reboot.
    cold: bool,
    store: fn(&Made) -> Took,
    floor: fn(&Made) -> Duration,
}

const CASES: [Case; 12] = [
    Case {
        name: "plan, nothing to go",
        beside: "read each record",
        removes: false,
        cold: false,
        store: |made| plan(made, made.each()).1,
        floor: |made| took(|| floor::records(&made.root)),
    },
    Case {
        name: "plan, half to go",
        beside: "read each record, stat what goes",
        removes: false,
        cold: false,
        store: |made| plan(made, made.each() / 2).1,
        floor: |made| took(|| floor::plan(&made.root, is_old)),
    },
    Case {
        name: "apply, half to go",
        beside: "read each record, unlink",
        removes: true,
        cold: false,
        store: apply,
        floor: collect,
    },
    Case {
        name: "gc, nothing to go",
        beside: "read each record",
        removes: false,
        cold: false,
        store: |made| gc(made, made.each()),
        floor: |made| took(|| floor::records(&made.root)),
    },
    Case {
        name: "gc, half to go",
        beside: "read each record, unlink",
        removes: true,
        cold: false,
        store: |made| gc(made, made.each() / 2),
        floor: collect,
    },
    Case {
        name: "verify",
        beside: "read and hash each file",
        removes: false,
        cold: false,
        store: |made| program::run(&made.root, &["verify"]),
        floor: |made| took(|| floor::bytes(&made.root)),
    },
    Case {
        name: "verify --quick",
        beside: "read each document, stat each file",
        removes: false,
        cold: false,
        store: |made| program::run(&made.root, &["verify", "--quick"]),
        floor: |made| took(|| floor::documents(&made.root)),
    },
    Case {
        name: "list",
        beside: "read each record, stat each file",
        removes: false,
        cold: false,
        store: |made| program::run(&made.root, &["list"]),
        floor: |made| took(|| floor::looks(&made.root)),
    },
    Case {
        name: "du",
        beside: "stat each file",
        removes: false,
        cold: false,
        store: |made| program::run(&made.root, &["du"]),
        floor: |made| took(|| floor::sizes(&made.root)),
    },
    Case {
        name: "list, cold",
        beside: "read each record",
        removes: false,
        cold: true,
        store: |made| program::run(&made.root, &["list"]),
        floor: |made| took(|| floor::records(&made.root)),
    },
    Case {
        name: "plan, cold",
        beside: "read each record",
        removes: false,
        cold: true,
        store: |made| program::run(&made.root, &["gc", "--dry-run", "--keep-last", &made.each().to_string()]),
        floor: |made| took(|| floor::records(&made.root)),
    },
    Case {
        name: "du, cold",
        beside: "stat each file",
        removes: false,
        cold: true,
        store: |made| program::run(&made.root, &["du"]),
        floor: |made| took(|| floor::sizes(&made.root)),
    },
];

/// Where root gives up what is in memory of files and directories (proc_sys_vm(5)).
const CACHES: &str = "/proc/sys/vm/drop_caches";

fn is_old(revision: &CStr) -> bool {
    revision.to_bytes().ends_with(&[OLD as u8])
}

fn took(work: impl FnOnce()) -> Duration {
    time(work).1
}

fn plan(made: &Made, keep_last: u32) -> (GcPlan, Took) {
    let store = Store::open(&made.root).unwrap();
    let (plan, time) = time(|| store.plan_gc(&Policy::default().keep_last(keep_last)).unwrap());
    (plan, Took { time, memory: None })
}

/// Does what a plan says that was made before.
fn apply(made: &Made) -> Took {
    let store = Store::open(&made.root).unwrap();
    let (plan, _) = plan(made, made.each() / 2);
    let (report, time) = time(|| store.apply_gc(&plan, &mut ()).unwrap());
    assert_eq!(report.removed.len(), made.count() / 2);
    Took { time, memory: None }
}

fn gc(made: &Made, keep_last: u32) -> Took {
    program::run(&made.root, &["gc", "--keep-last", &keep_last.to_string()])
}

fn collect(made: &Made) -> Duration {
    let keys = made.old_keys();
    took(|| floor::collect(&made.root, is_old, &keys))
}

/// The times of one case on one store.
struct Row {
    case: &'static Case,
    count: usize,
    store: Vec<Duration>,
    floor: Vec<Duration>,
    memory: Option<u64>,
}

impl Row {
    fn measure(case: &'static Case, made: &Made) -> Row {
        let mut row = Row { case, count: made.count(), store: Vec::new(), floor: Vec::new(), memory: None };
        if case.cold {
            gc(made, made.each()); // as it is run now and then: it leaves a catalog
        }
        for round in 0..rounds(made.count()) {
            // Who comes second may find caches warm and queues full: each comes first as often.
            for store in [round % 2 == 0, round % 2 != 0] {
                settle(&made.root);
                if case.cold {
                    std::fs::write(CACHES, "3").unwrap();
                }
                row.turn(store, made);
                if case.removes {
                    row.check_and_refill(made);
                }
            }
        }
        row
    }

    fn turn(&mut self, store: bool, made: &Made) {
        if store {
            let took = (self.case.store)(made);
            self.store.push(took.time);
            self.memory = self.memory.max(took.memory);
        } else {
            self.floor.push((self.case.floor)(made));
        }
    }

    fn check_and_refill(&self, made: &Made) {
        let left = std::fs::read_dir(made.root.join("templates/t00/artifacts")).unwrap().count();
        assert_eq!(left * 2 * TEMPLATES, made.count(), "{}", self.case.name);
        made.fill();
    }

    fn print(&self) {
        let ratios = ratios(&self.store, &self.floor);
        let (low, middle, high) = (quantile(&ratios, 0.25), quantile(&ratios, 0.5), quantile(&ratios, 0.75));
        println!(
            "{:<20} {:>9} {:>6} {:>9} {:>9} {middle:>6.2} {:>13} {:>9}  {}",
            self.case.name,
            self.count,
            self.store.len(),
            text(median(&self.store)),
            text(median(&self.floor)),
            format!("{low:.2} – {high:.2}"),
            self.memory.map_or_else(String::new, |bytes| format!("{:.1} MiB", bytes as f64 / 1048576.0)),
            self.case.beside,
        );
    }
}

fn rounds(count: usize) -> usize {
    match count {
        50_001.. => 3,
        5_001.. => 5,
        501.. => 11,
        _ => 1,
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [make, dir, count] = args.as_slice()
        && make == "--make"
    {
        Made::new(Utf8Path::new(dir), count.parse().expect("a number"));
        return;
    }
    let (_temporary, dir) = temporary();
    println!(
        "\nStores of small revisions in {TEMPLATES} templates, in {dir} on {}; caches are warm where nothing else is said.",
        file_system(&dir)
    );
    println!("Medians; the middle half of the ratios of each round; the most memory of the program.\n");
    println!(
        "{:<20} {:>9} {:>6} {:>9} {:>9} {:>6} {:>13} {:>9}  the floor",
        "", "revisions", "rounds", "store", "floor", "ratio", "middle half", "memory"
    );
    let wanted = |case: &&Case| args.iter().all(|arg| arg.starts_with('-') || case.name.contains(arg.as_str()));
    let can_be_cold = std::fs::write(CACHES, "3").is_ok();
    if !can_be_cold {
        println!("Only root can drop the system's caches: nothing is measured cold.\n");
    }
    let wanted = |case: &&Case| wanted(case) && (can_be_cold || !case.cold);
    let mut rows = Vec::new();
    for count in counts() {
        let made = Made::new(&dir.join(format!("store-{count}")), count);
        program::run(&made.root, &["verify"]); // what was made is a store
        for case in CASES.iter().filter(wanted) {
            let row = Row::measure(case, &made);
            row.print();
            rows.push(row);
        }
        std::fs::remove_dir_all(&made.root).unwrap();
    }
    print_growth(&rows);
}

/// The sizes of the stores. `cargo test` only tries whether all of this works.
fn counts() -> Vec<usize> {
    let default = if std::env::args().any(|arg| arg == "--bench") { "1000,10000" } else { "200" };
    let counts = std::env::var("BENCH_REVISIONS").unwrap_or_else(|_| default.into());
    counts.split(',').map(|count| count.trim().parse().expect("BENCH_REVISIONS is a list of numbers")).collect()
}

/// How the time for one revision grows with the store: 1 is linear.
fn print_growth(rows: &[Row]) {
    let each = |row: &Row, times: &[Duration]| median(times) / row.count as f64;
    let mut header = "\nThe time for each revision, beside that in the smaller store:\n\n".to_owned();
    for row in rows {
        let smaller = rows.iter().rfind(|one| one.case.name == row.case.name && one.count < row.count);
        let Some(smaller) = smaller else { continue };
        let store = each(row, &row.store) / each(smaller, &smaller.store);
        let floor = each(row, &row.floor) / each(smaller, &smaller.floor);
        print!("{header}");
        header.clear();
        println!("{:<20} {:>9} to {:>7} {store:>6.2} (the floor {floor:.2})", row.case.name, smaller.count, row.count);
    }
}

/// The name of the file system that a directory is on.
fn file_system(dir: &Utf8Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mount = |line: &str| {
        let mut words = line.split(' ').skip(1);
        Some((Utf8PathBuf::from(words.next()?), words.next()?.to_owned()))
    };
    let above = mounts.lines().filter_map(mount).filter(|(path, _)| dir.starts_with(path));
    above.max_by_key(|(path, _)| path.as_str().len()).map_or_else(|| "?".into(), |(_, kind)| kind)
}
