//! Instances of a 1 GiB image beside `cp` and beside plain system calls, with the same files, names and syncs:
//! `cargo bench --bench instance`, a minute or two.
//!
//! All happens in the temporary directory: `TMPDIR=/some/file/system` measures another file system. Where files can
//! share blocks there, the disks are clones (`cp --reflink=always`), else copies without holes (`cp --sparse=always`).
//! `BENCH_INSTANCES=1000` makes so many on each side.

mod floor;
#[path = "../support/plain.rs"]
mod plain;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use template_store::{Durability, Revision, Store, StoreOptions};

use floor::{Disk, Floor};
use plain::{median, quantile, ratios, settle, temporary, text, time};

const MIB: u64 = 1024 * 1024;
/// Of the root file system, of which so many pieces hold data.
const SIZE: u64 = 1024 * MIB;
const PIECES: u64 = 64;

fn main() {
    let (_temporary, dir) = temporary();
    let image = dir.join("image");
    make_image(&image, if is_measured() { MIB } else { 4096 });
    let store = Store::init(dir.join("store"), &StoreOptions::default().durability(Durability::Full)).unwrap();
    let revision = store.publish_dir(&"web".parse().unwrap(), &image).unwrap();
    let disk = if floor::can_clone(&dir) { Disk::Clone } else { Disk::Copy };
    let mut sides = Sides::new(&dir, revision, disk);
    for number in 0..rounds(disk) {
        sides.round(number);
    }
    sides.print(disk);
}

/// Whether this is a measurement: `cargo test` only tries whether all of this works.
fn is_measured() -> bool {
    std::env::args().any(|arg| arg == "--bench")
}

fn rounds(disk: Disk) -> usize {
    let default = match (is_measured(), disk) {
        (false, _) => 2,
        (true, Disk::Clone) => 300,
        (true, Disk::Copy) => 20,
    };
    std::env::var("BENCH_INSTANCES").map_or(default, |count| count.parse().expect("BENCH_INSTANCES is a number"))
}

/// A kernel, a root file system with data all over it, a configuration.
fn make_image(dir: &Utf8Path, piece: u64) {
    std::fs::create_dir(dir).unwrap();
    let bytes: Vec<u8> = (0..piece).map(|at| (at % 251) as u8 + 1).collect();
    std::fs::write(dir.join("vmlinux"), bytes.repeat(16)).unwrap();
    let mut rootfs = File::create(dir.join("rootfs.ext4")).unwrap();
    rootfs.set_len(SIZE).unwrap();
    for number in 0..PIECES {
        rootfs.seek(SeekFrom::Start(number * (SIZE / PIECES))).unwrap();
        rootfs.write_all(&bytes).unwrap();
    }
    std::fs::write(dir.join("fc-base.json"), r#"{"machine-config":{"vcpu_count":2,"mem_size_mib":512}}"#).unwrap();
}

/// Four ways to make an instance, each with a directory that fills in the course of time.
struct Sides {
    dir: Utf8PathBuf,
    revision: Revision,
    floor: Floor,
    times: [Vec<Duration>; 4],
}

const LIBRARY: usize = 0;
const FLOOR: usize = 1;
const PROGRAM: usize = 2;
const CP: usize = 3;
const NAMES: [&str; 4] = ["library", "floor", "program", "cp"];

impl Sides {
    fn new(dir: &Utf8Path, revision: Revision, disk: Disk) -> Sides {
        for name in NAMES {
            std::fs::create_dir(dir.join(name)).unwrap();
        }
        let model = revision.instance(dir.join("model")).unwrap();
        let floor = Floor::new(dir.join("registry"), revision.path(), model.path(), disk);
        Sides { dir: dir.to_owned(), revision, floor, times: Default::default() }
    }

    /// Who comes second may find caches warm and queues full: each comes first as often.
    fn round(&mut self, number: usize) {
        for turn in 0..NAMES.len() {
            let side = (number + turn) % NAMES.len();
            let dest = self.dir.join(NAMES[side]).join(number.to_string());
            settle(&self.dir);
            let took = self.make(side, &dest);
            self.times[side].push(took);
            if number == 0 {
                check(&dest, &self.dir.join("model"));
            }
        }
    }

    fn make(&self, side: usize, dest: &Utf8Path) -> Duration {
        match side {
            LIBRARY => time(|| self.revision.instance(dest).unwrap()).1,
            FLOOR => time(|| self.floor.make(dest)).1,
            PROGRAM => time(|| self.program(dest)).1,
            _ => time(|| self.floor.make_with_cp(dest)).1,
        }
    }

    fn program(&self, dest: &Utf8Path) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_template-store"));
        command.arg("--store").arg(self.dir.join("store")).args(["--quiet", "instance", "web"]).arg(dest);
        assert!(command.stdout(Stdio::null()).status().unwrap().success());
    }

    fn print(&self, disk: Disk) {
        let (kind, cp) = match disk {
            Disk::Clone => ("clones", "cp --reflink=always"),
            Disk::Copy => ("copies without holes", "cp --sparse=always"),
        };
        let count = self.times[0].len();
        println!("\n{count} instances of a 1 GiB image on each side, by turns, in {}: the disks are {kind}.", self.dir);
        println!("Medians, and the middle half of the ratios of each round; what all took, and the ratio of that.\n");
        println!("{:<52} {:>9} {:>9} {:>6} {:>13} {:>7}", "", "", "beside", "ratio", "middle half", "of all");
        let row = |one: usize, other: usize, name: &str| {
            let (one, other) = (&self.times[one], &self.times[other]);
            let ratios = ratios(one, other);
            let all = |times: &[Duration]| times.iter().sum::<Duration>().as_secs_f64();
            println!(
                "{name:<52} {:>9} {:>9} {:>6.2} {:>13} {:>7.2}",
                text(median(one)),
                text(median(other)),
                quantile(&ratios, 0.5),
                format!("{:.2} – {:.2}", quantile(&ratios, 0.25), quantile(&ratios, 0.75)),
                all(one) / all(other),
            );
        };
        row(LIBRARY, FLOOR, "the library, beside plain system calls");
        row(PROGRAM, CP, &format!("the program, beside {cp}"));
        row(LIBRARY, CP, &format!("the library, beside {cp}"));
        row(CP, FLOOR, &format!("{cp}, beside plain system calls"));
    }
}

/// What is measured is the same work: the same names, sizes, and blocks but for those of the documents.
fn check(made: &Utf8Path, model: &Utf8Path) {
    use std::os::unix::fs::MetadataExt;
    let list = |dir: &Utf8Path| {
        let mut found: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.sort();
        let looks = found.into_iter().map(|path| {
            let found = path.metadata().unwrap();
            let size = if path.ends_with("rootfs.ext4") { (found.len(), found.nlink()) } else { (0, 0) };
            (path.file_name().unwrap().to_owned(), size)
        });
        looks.collect::<Vec<_>>()
    };
    assert_eq!(list(made), list(model), "{made}");
    let blocks = |dir: &Utf8Path| dir.join("rootfs.ext4").metadata().unwrap().blocks();
    assert!(blocks(made) <= blocks(model) + 16, "{made} has more blocks");
}
