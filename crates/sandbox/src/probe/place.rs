//! What can only be told by trying, at the place where sessions are to live. Nothing of it stays.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use serde_json::json;

use super::Probe;
use crate::{Driver, Error, Native, Options, Sandbox, Spec, Status, Temporary, ToolCall, Workspace, disk, native};

/// Tries what sandboxes need with sessions kept in `state_dir`, which need not exist: a throw-away sandbox, its disk, its
/// freezer; and looks for runtimes, KVM and GPUs.
pub async fn probe_place(state_dir: &Path) -> Vec<Probe> {
    let there = state_dir.ancestors().find(|place| place.is_dir()).unwrap_or(Path::new("/"));
    let mut probes = sandbox(there).await;
    probes.extend([idmap(there), disks(there)]);
    probes.extend(runtimes());
    probes.extend([kvm(), gpus()]);
    probes
}

/// A sandbox with a workspace of layers: that it comes up, can write, and stands still when it is told to.
async fn sandbox(place: &Path) -> Vec<Probe> {
    let mut made = Probe {
        facility: "a sandbox, tried",
        available: false,
        required: true,
        detail: String::new(),
        fix: Some("see what is missing above; the step that failed is named here"),
    };
    let mut frozen = Probe {
        facility: "freezing, tried",
        available: false,
        required: false,
        detail: "no sandbox to try it on".to_owned(),
        fix: Some("make control groups possible, see above; checkpoints need it"),
    };
    match throw_away(place).await {
        Ok((_home, sandbox)) => {
            let report = sandbox.report();
            let missing: Vec<String> = report
                .facilities
                .iter()
                .filter_map(|(facility, status)| match status {
                    Status::Unavailable(why) => Some(format!("no {facility}: {why}")),
                    Status::Enforced(_) | Status::Unused => None,
                })
                .collect();
            let up = format!("up in {:.1} ms", report.startup.as_secs_f64() * 1000.0);
            match written(&sandbox).await {
                Ok(()) => {
                    made.available = true;
                    made.detail = format!("{up}, writes to its overlay");
                    for what in missing {
                        made.detail.push_str("; ");
                        made.detail.push_str(&what);
                    }
                }
                Err(why) => made.detail = format!("{up}; its overlay cannot be written: {why}"),
            }
            let done = match sandbox.freeze().await {
                Ok(()) => sandbox.thaw().await,
                why => why,
            };
            frozen.available = done.is_ok();
            frozen.detail = done.map_or_else(|why| why.to_string(), |()| "stood still and went on".to_owned());
            if let Err(why) = sandbox.destroy().await {
                made.available = false;
                made.detail = format!("it could not be ended: {why}");
            }
        }
        Err(why) => made.detail = why.to_string(),
    }
    vec![made, frozen]
}

async fn throw_away(place: &Path) -> Result<(Temporary, Sandbox), Error> {
    let wrong = |cause| Error::Directory { path: place.to_owned(), cause };
    // Where the sessions would be: other file systems can other things.
    let home = Temporary::new(".palisade-doctor-", Some(place)).map_err(wrong)?;
    let [lower, upper, outputs] = ["lower", "upper", "outputs"].map(|name| home.path().join(name));
    for place in [&lower, &upper, &outputs] {
        fs::create_dir(place).map_err(wrong)?;
    }
    fs::write(lower.join("file"), "below").map_err(wrong)?;
    let spec = Spec::new(Workspace::Layered { lower: vec![lower], upper }, outputs);
    Ok((home, Native::new(Options::default()).create(spec).await?))
}

/// Whether a file above hides the one below, which only an overlay does.
async fn written(sandbox: &Sandbox) -> Result<(), String> {
    let call =
        |name: &str, input| ToolCall { name: name.to_owned(), input, timeout: std::time::Duration::from_secs(5) };
    let below = sandbox.tool(call("read", json!({"file_path": "file"}))).await.map_err(|why| why.to_string())?;
    let input = json!({"file_path": "above", "content": "above"});
    let above = sandbox.tool(call("write", input)).await.map_err(|why| why.to_string())?;
    let failed = [below, above].into_iter().find(|output| output.is_error);
    match failed {
        None => Ok(()),
        Some(output) => Err(output.content.first().map_or_else(String::new, |block| block["text"].to_string())),
    }
}

fn idmap(place: &Path) -> Probe {
    let tried = if native::is_root() { native::idmapped(place).map(|()| "owners are translated") } else { Ok("") };
    Probe {
        facility: "idmapped mounts",
        available: native::is_root() && tried.is_ok(),
        required: false,
        detail: match tried {
            Ok("") => "not used without root: sandboxes are the caller's own user".to_owned(),
            Ok(done) => format!("{done} at {}", place.display()),
            Err(why) => why.to_string(),
        },
        fix: Some(
            "keep the state directory on ext4, xfs or btrfs, or on tmpfs since Linux 6.3; run the worker as root",
        ),
    }
}

fn disks(place: &Path) -> Probe {
    let found = match (native::is_root(), disk::project_quota(place)) {
        (true, Ok(())) => Ok(format!("project quotas at {}", place.display())),
        (_, quota) => disk::sized_disks().map_err(|no_disk| match quota {
            Err(no_quota) => format!("{no_quota}; {no_disk}"),
            Ok(()) => no_disk,
        }),
    };
    Probe {
        facility: "disk limits",
        available: found.is_ok(),
        required: false,
        detail: found.unwrap_or_else(|why| why),
        fix: Some("run the worker as root, and mount the state directory with prjquota or install e2fsprogs"),
    }
}

/// Programs and sockets of other isolation.
fn runtimes() -> Vec<Probe> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut probes: Vec<Probe> = ["runc", "crun", "runsc"]
        .into_iter()
        .map(|name| {
            let found = std::env::split_paths(&path).map(|place| place.join(name)).find(|program| program.is_file());
            Probe {
                facility: name,
                available: found.is_some(),
                required: false,
                detail: found.map_or_else(|| "not in PATH".to_owned(), |program| program.display().to_string()),
                fix: Some("install it to have sandboxes made by it; the native driver needs none"),
            }
        })
        .collect();
    let sockets = ["/var/run/docker.sock", "/run/podman/podman.sock"];
    let found: Vec<&str> = sockets
        .into_iter()
        .filter(|path| fs::metadata(path).is_ok_and(|found| found.file_type().is_socket()))
        .collect();
    probes.push(Probe {
        facility: "Docker or Podman",
        available: !found.is_empty(),
        required: false,
        detail: if found.is_empty() { "no socket of either".to_owned() } else { found.join(", ") },
        fix: Some("start the engine to have sandboxes made by it; the native driver needs none"),
    });
    probes
}

fn kvm() -> Probe {
    let opened = fs::File::options().read(true).write(true).open("/dev/kvm");
    Probe {
        facility: "KVM",
        available: opened.is_ok(),
        required: false,
        detail: match opened {
            Ok(_) => "/dev/kvm opens".to_owned(),
            Err(why) if why.kind() == io::ErrorKind::NotFound => "no /dev/kvm".to_owned(),
            Err(why) => format!("/dev/kvm: {why}"),
        },
        fix: Some("needed by microVMs only: load kvm_intel or kvm_amd, or allow nested virtualisation"),
    }
}

fn gpus() -> Probe {
    let mut names = Vec::new();
    for (place, prefixes) in
        [("", &["nvidia", "kfd"][..]), ("dri/", &["renderD", "card"][..]), ("accel/", &["accel"][..])]
    {
        for entry in fs::read_dir(format!("/dev/{place}")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let device = entry.file_type().is_ok_and(|kind| kind.is_char_device());
            if device && prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                names.push(format!("{place}{name}"));
            }
        }
    }
    names.sort();
    Probe {
        facility: "GPUs",
        available: !names.is_empty(),
        required: false,
        detail: if names.is_empty() { "none".to_owned() } else { names.join(", ") },
        fix: Some("needed only where --gpu is used: install the driver of the device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_place_is_tried_and_left_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        // Others mount and unmount meanwhile.
        let mounts = || {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            mounts.lines().filter(|line| line.contains(&*home.path().to_string_lossy())).count()
        };
        let before = mounts();
        let probes = probe_place(home.path()).await;
        let tried = probes.iter().find(|probe| probe.facility == "a sandbox, tried").unwrap();
        assert!(tried.available, "{}", tried.detail);
        assert!(probes.iter().all(|probe| !probe.detail.is_empty() && probe.fix.is_some()));
        assert_eq!((fs::read_dir(home.path()).unwrap().count(), mounts()), (0, before));
        let none = home.path().join("not/there");
        probe_place(&none).await;
        assert!(!home.path().join("not").exists());
    }
}
