//! A disk that is full.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use appliance_tests::server::scratch_directory;
use appliance_tests::{PATIENCE, Server, eventually};
use nix::sys::signal::Signal::SIGTERM;

use crate::parameters::Cloud;
use crate::{COMPLETIONS, completion, name, other};

/// A file system of 64 KiB. Dropping it takes it away.
struct Small(PathBuf);

impl Small {
    /// For who may mount; for others `None`, and a word about it.
    fn mount(name: &str) -> Option<Self> {
        let path = scratch_directory(name);
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(&path);
        let mounted = mount.stderr(Stdio::null()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: only root may mount a small file system");
            return None;
        }
        Some(Self(path))
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).expect("the file of before");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_disk_is_told_and_requests_are_answered() {
    let Some(cloud) = Cloud::open("full") else {
        return;
    };
    let Some(disk) = Small::mount("full-disk") else {
        return;
    };
    let (one, two) = (other("full-1"), other("full-2"));
    cloud.model(&one);
    disk.fill();
    let state = disk.0.to_str().expect("a path of letters");
    let ledger = disk.0.join("ledger.jsonl");
    let ledger = ledger.to_str().expect("a path of letters");
    let flags = [
        "--ssm-interval",
        "200ms",
        "--state-dir",
        state,
        "--ledger",
        ledger,
    ];
    let mut server = Server::instance(&cloud.environment(), &flags);
    server.await_ready();
    server.ask(COMPLETIONS, &completion("a", 3));
    eventually("it is told", || {
        let log = server.log();
        log.contains("cannot keep the settings") && log.contains("cannot write the ledger")
    });
    cloud.model(&two);
    eventually("it follows its parameters all the same", || {
        server.serves().as_deref() == Some(&name(&two))
    });
    disk.empty();
    eventually("what waited is written", || {
        let lines = fs::read_to_string(ledger).unwrap_or_default();
        lines.contains("\"output_tokens\":3")
    });
    server.signal(SIGTERM);
    assert_eq!(server.exit_code_within(PATIENCE), 0);
}
