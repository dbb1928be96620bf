//! What is mounted where: whatever lies behind a mount point is not a part of the directory that has it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{AtFlags, StatxFlags};

use super::lossy;

/// The first place at a path or below it at which something is mounted, as this process sees it. The path has no links.
///
/// Without `/proc`, nothing is known. What deletes trees goes into no other mount all the same.
pub(crate) fn at_or_below(path: &Utf8Path) -> Option<Utf8PathBuf> {
    first(&fs::read("/proc/self/mountinfo").ok()?, path)
}

/// Format: proc_pid_mountinfo(5); the fifth field is the mount point.
fn first(table: &[u8], path: &Utf8Path) -> Option<Utf8PathBuf> {
    let points = table.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    let mut below: Vec<PathBuf> = points.map(unescaped).filter(|point| point.starts_with(path)).collect();
    below.sort();
    below.first().map(|point| lossy(point))
}

/// The kernel writes spaces, tabs, line ends and backslashes as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Whether two open directories are of one mount.
///
/// Of a kernel that does not number mounts, whether they are on one file system.
pub(super) fn is_one(a: &impl AsFd, b: &File) -> io::Result<bool> {
    let of = |file: &dyn AsFd| rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    match (of(a), of(b)) {
        (Ok(a), Ok(b)) if a.stx_mask & b.stx_mask & StatxFlags::MNT_ID.bits() != 0 => Ok(a.stx_mnt_id == b.stx_mnt_id),
        _ => Ok(rustix::fs::fstat(a)?.st_dev == rustix::fs::fstat(b)?.st_dev),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_first_mount_below_a_path_is_found_by_its_real_name() {
        let table = br"22 1 0:1 / / rw - ext4 /dev/vda rw
36 22 98:0 /mnt2 /vms/my\0401/b rw,noatime master:1 - ext3 /dev/root rw
37 22 98:0 /mnt2 /vms/my\0401/a\134 rw - ext3 /dev/root rw
38 22 98:0 / /vms/10 rw - tmpfs none rw
";
        let found = |path: &str| first(table, Utf8Path::new(path)).map(Utf8PathBuf::into_string);
        assert_eq!(found("/vms/my 1").as_deref(), Some("/vms/my 1/a\\"));
        assert_eq!(found("/vms/10").as_deref(), Some("/vms/10"));
        assert_eq!(found("/vms/1"), None, "the name of another begins with it");
        assert_eq!(first(b"", Utf8Path::new("/vms")), None);
        assert_eq!(first(b"one two\n\n", Utf8Path::new("/vms")), None);
    }

    #[test]
    fn a_directory_and_one_in_it_are_of_one_mount() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        let open = |path: &Path| File::open(path).unwrap();
        assert!(is_one(&open(dir.path()), &open(&dir.path().join("in"))).unwrap());
        assert!(!is_one(&open(dir.path()), &open(Path::new("/proc"))).unwrap());
    }
}
