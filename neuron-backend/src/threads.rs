//! What the threads of this process are doing, for the words before an abort.

use std::fs;
use std::path::Path;

/// The most threads that are described.
const MOST: usize = 256;

/// A line for each thread: its name, its state and where in the kernel it waits, if that is told.
pub(crate) fn describe() -> String {
    described(Path::new("/proc/self/task"))
}

/// The same of another process.
pub(crate) fn describe_process(process: u32) -> String {
    described(Path::new(&format!("/proc/{process}/task")))
}

fn described(tasks: &Path) -> String {
    let Ok(tasks) = fs::read_dir(tasks) else {
        return "/proc does not tell".to_owned();
    };
    let lines = tasks.flatten().take(MOST).map(|task| line(&task.path()));
    lines.collect::<Vec<_>>().join("; ")
}

fn line(task: &Path) -> String {
    let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
    let name = read("comm");
    // After the name in brackets comes the state, one letter.
    let stat = read("stat");
    let state = stat.rsplit_once(") ").map_or("?", |(_, rest)| &rest[..1]);
    let place = read("wchan");
    match place.trim() {
        "" | "0" => format!("{} {state}", name.trim()),
        place => format!("{} {state} in {place}", name.trim()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_thread_is_among_them_and_runs() {
        let thread = std::thread::Builder::new().name("described".into());
        let described = thread.spawn(super::describe).unwrap().join().unwrap();
        assert!(described.contains("described R"), "{described}");
    }
}
