use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use super::*;

const MIB: u64 = 1 << 20;

/// Writes until nothing more is taken: how much it was, and what the system said.
fn fill(at: &Path) -> (u64, io::Error) {
    let mut file = File::create(at).unwrap();
    let block = vec![1; 1 << 16];
    let mut written = 0;
    loop {
        match io::Write::write_all(&mut file, &block).and_then(|()| file.sync_data()) {
            Ok(()) => written += block.len() as u64,
            Err(why) => return (written, why),
        }
    }
}

fn limited(directory: &Path, limit: Limit) -> Option<Disk> {
    match open(directory, limit) {
        Ok(disk) => Some(disk.expect("it has a limit")),
        Err(Error::Unavailable(why)) => {
            eprintln!("not run here: {why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

fn is_loop(directory: &Path) -> bool {
    rustix::fs::major(fs::metadata(directory).unwrap().dev()) == 7
}

const SMALL: Limit = Limit { bytes: Some(32 * MIB), inodes: Some(500) };

#[test]
fn a_disk_of_its_own_is_full_when_it_is_and_keeps_what_it_holds() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("layer");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    let Some(disk) = limited(&directory, SMALL) else { return };
    if !is_loop(&directory) {
        return eprintln!("not run here: there are project quotas");
    }
    assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    assert!(matches!(disk.status(SMALL), Status::Enforced(_)), "{:?}", disk.status(SMALL));
    let (written, why) = fill(&directory.join("big"));
    assert_eq!(why.kind(), io::ErrorKind::StorageFull);
    assert!((16 * MIB..=32 * MIB).contains(&written), "{written}");
    assert!(disk.used() > Some(16 * MIB));
    // What is removed is given back to the file system around it.
    let on_disk = || fs::metadata(image_of(&directory)).unwrap().blocks() * 512;
    let full = on_disk();
    fs::remove_file(directory.join("big")).unwrap();
    fs::write(directory.join("kept"), "kept").unwrap();
    // Opened twice it is the same; it goes with the last.
    let again = limited(&directory, SMALL).unwrap();
    drop(disk);
    assert!(is_loop(&directory));
    drop(again);
    assert!(!is_loop(&directory) && full > on_disk() + 8 * MIB, "{full} {}", on_disk());
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    // It comes back without a limit being asked for, and says when it is larger than one that is.
    let disk = open(&directory, Limit::default()).unwrap().unwrap();
    assert_eq!(fs::read_to_string(directory.join("kept")).unwrap(), "kept");
    let less = Limit { bytes: Some(20 * MIB), inodes: None };
    assert!(matches!(disk.status(less), Status::Unavailable(_)));
    assert!(matches!(clear(&directory), Err(Error::Busy(_))) && is_loop(&directory));
    drop(disk);
    clear(&directory).unwrap();
    assert!(!image_of(&directory).exists());
}

#[test]
fn many_files_are_as_full_as_large_ones() {
    let home = tempfile::tempdir().unwrap();
    let Some(_disk) = limited(home.path(), SMALL) else { return };
    let made = (0..).map(|n| File::create(home.path().join(n.to_string()))).take_while(io::Result::is_ok).count();
    assert!((400..2000).contains(&made), "{made}");
}

#[test]
fn leftovers_are_swept_and_those_in_use_are_not() {
    let home = tempfile::tempdir().unwrap();
    let [left, used] = ["left over", "used"].map(|name| home.path().join(name));
    for place in [&left, &used] {
        fs::create_dir(place).unwrap();
    }
    let Some(disk) = limited(&left, SMALL) else { return };
    let _used = limited(&used, SMALL).unwrap();
    if !is_loop(&left) {
        return eprintln!("not run here: there are project quotas");
    }
    fs::write(left.join("file"), "content").unwrap();
    // As after SIGKILL: the mount is there, nobody holds the lock.
    let Some(Kind::Sized(sized)) = Arc::into_inner(disk.0) else { unreachable!("it is a loop device") };
    sized.abandon();
    assert!(is_loop(&left));
    sweep(home.path());
    assert!(!is_loop(&left) && is_loop(&used));
    // Somebody still has the file system when it is opened anew: there must not be two on the same blocks.
    let disk = limited(&left, SMALL).unwrap();
    let held = File::open(left.join("file")).unwrap();
    let device = fs::metadata(&left).unwrap().dev();
    drop(disk);
    let disk = limited(&left, SMALL).unwrap();
    assert_eq!(fs::metadata(&left).unwrap().dev(), device);
    assert_eq!(fs::read_to_string(left.join("file")).unwrap(), "content");
    drop((held, disk));
}

#[test]
fn what_cannot_be_limited_is_told() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("layer");
    fs::create_dir(&directory).unwrap();
    assert!(open(&directory, Limit::default()).unwrap().is_none());
    assert!(matches!(open(&home.path().join("none"), SMALL), Err(Error::Step { .. })));
    if project_quota(&directory).is_ok() {
        return eprintln!("not run here: there are project quotas");
    }
    let tiny = Limit { bytes: Some(MIB), inodes: None };
    assert!(matches!(open(&directory, tiny), Err(Error::Unavailable(_))));
    fs::write(directory.join("file"), "").unwrap();
    assert!(matches!(open(&directory, SMALL), Err(Error::Unavailable(_))));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
}

#[test]
fn a_project_quota_is_used_where_there_is_one() {
    let home = tempfile::tempdir().unwrap();
    let (image, place) = (home.path().join("image"), home.path().join("place"));
    fs::create_dir(&place).unwrap();
    File::create(&image).unwrap().set_len(128 * MIB).unwrap();
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-O", "project,quota"]).arg(&image);
    match command.status() {
        Ok(status) if status.success() => {}
        other => return eprintln!("not run here: no file system with quotas can be made: {other:?}"),
    }
    if let Err(why) = sized::attach_and_mount(&image, &place, "prjquota") {
        return eprintln!("not run here: {why}");
    }
    let done = std::panic::catch_unwind(|| quotas(&place));
    rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
    done.unwrap();
}

fn quotas(place: &Path) {
    let [one, other] = ["one", "other"].map(|name| place.join(name));
    fs::create_dir_all(one.join("deep")).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(one.join("deep/file"), vec![1; 1 << 20]).unwrap();
    let disk = limited(&one, Limit { bytes: Some(8 * MIB), inodes: Some(100) }).unwrap();
    assert!(matches!(&*disk.0, Kind::Project(_)));
    // What was there counts.
    assert!(disk.used() >= Some(MIB), "{:?}", disk.used());
    let _other = limited(&other, Limit { bytes: Some(8 * MIB), inodes: None }).unwrap();
    assert_ne!(number(&disk), number(&_other));
    // This process may go beyond any quota, which is what sandboxes may not.
    let script = "cd \"$0\" && mkdir -p a/b && head -c 32M /dev/zero > a/b/fill; stat -c %s a/b/fill; rm a/b/fill; \
                  for n in $(seq 200); do : > a/$n || break; done; ls a | wc -l; ln deep/file \"$1/link\"";
    for path in [&one, &one.join("deep")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    fs::set_permissions(place.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new("/bin/sh");
    std::os::unix::process::CommandExt::uid(command.args(["-c", script]), 54321);
    let said = command.arg(&one).arg(&other).output().unwrap();
    let numbers: Vec<u64> =
        String::from_utf8_lossy(&said.stdout).lines().map(|line| line.trim().parse().unwrap()).collect();
    let complaints = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(complaints.contains("quota exceeded"), "{complaints}");
    assert!((6 * MIB..8 * MIB).contains(&numbers[0]) && (80..100).contains(&numbers[1]), "{numbers:?}");
    assert!(!other.join("link").exists());
    // It is found again, and its number is free when all is gone.
    let first = number(&disk);
    drop(disk);
    let disk = limited(&one, Limit { bytes: Some(9 * MIB), inodes: None }).unwrap();
    assert_eq!(number(&disk), first);
    drop(disk);
    fs::remove_dir_all(&one).unwrap();
    fs::create_dir(&one).unwrap();
    assert_eq!(number(&limited(&one, SMALL).unwrap()), first);
}

fn number(disk: &Disk) -> String {
    match &*disk.0 {
        Kind::Project(project) => project.to_string(),
        Kind::Sized(_) => panic!("no project"),
    }
}
