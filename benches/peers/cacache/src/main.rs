//! `cacache` as a program: `cacache-peer put|get|verify|fill|list|remove CACHE …`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use cacache::{RemoveOpts, SyncReader, SyncWriter};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const FILES: [&str; 3] = ["vmlinux", "rootfs.ext4", "fc-base.json"];

fn main() -> Result {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["put", cache, entry, dir] => put(cache, entry, Path::new(dir)),
        ["get", cache, entry, dir] => get(cache, entry, Path::new(dir)),
        ["verify", cache] => verify(cache),
        ["fill", cache, count] => fill(cache, count.parse()?),
        ["list", cache] => list(cache),
        ["remove", cache, count] => remove_even(cache, count.parse()?),
        _ => Err("usage: cacache-peer put|get CACHE ENTRY DIR, verify|list CACHE, or fill|remove CACHE COUNT".into()),
    }
}

/// The keys of an entry are its name and that of each file.
fn key(entry: &str, file: &str) -> String {
    format!("{entry}/{file}")
}

fn put(cache: &str, entry: &str, dir: &Path) -> Result {
    for file in FILES {
        let mut writer = SyncWriter::create(cache, key(entry, file))?;
        io::copy(&mut File::open(dir.join(file))?, &mut writer)?;
        writer.commit()?;
    }
    Ok(())
}

/// Checks what it copies.
fn get(cache: &str, entry: &str, dir: &Path) -> Result {
    fs::create_dir_all(dir)?;
    for file in FILES {
        cacache::copy_sync(cache, key(entry, file), dir.join(file))?;
    }
    Ok(())
}

/// The crate has no such call: each content is read as its reader does, which checks it.
fn verify(cache: &str) -> Result {
    for entry in cacache::list_sync(cache) {
        let mut reader = SyncReader::open_hash(cache, entry?.integrity)?;
        io::copy(&mut reader, &mut io::sink())?;
        reader.check()?;
    }
    Ok(())
}

fn fill(cache: &str, count: usize) -> Result {
    for number in 1..=count {
        for file in FILES {
            let mut writer = SyncWriter::create(cache, key(&format!("entry-{number}"), file))?;
            let size = if file == "fc-base.json" { 1 } else { number % 200 + 1 };
            writer.write_all(format!("{file} {number} ").repeat(size).as_bytes())?;
            writer.commit()?;
        }
    }
    Ok(())
}

/// What a collection with nothing to do would have to look at.
fn list(cache: &str) -> Result {
    let mut count = 0;
    for entry in cacache::list_sync(cache) {
        entry?;
        count += 1;
    }
    println!("{count}");
    Ok(())
}

/// Removes every second entry with its contents: there is no collection, and who removes must know what is shared.
fn remove_even(cache: &str, count: usize) -> Result {
    for number in (2..=count).step_by(2) {
        for file in FILES {
            RemoveOpts::new().remove_fully(true).remove_sync(cache, key(&format!("entry-{number}"), file))?;
        }
    }
    Ok(())
}
