//! Images, volumes and specs that want out: each either refused or harmless, the node's files unchanged.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use crate::rig::{Scratch, ready, set, spec, with_mount, with_script};

/// A directory of the node that nothing may appear in.
struct Canary {
    directory: std::path::PathBuf,
}

impl Canary {
    fn new(scratch: &Scratch) -> Self {
        let directory = scratch.path.join("canary");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("file"), "canary").unwrap();
        Self { directory }
    }

    fn check(&self, case: &str) {
        let names: Vec<_> = std::fs::read_dir(&self.directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["file"], "{case}");
        assert_eq!(
            std::fs::read_to_string(self.directory.join("file")).unwrap(),
            "canary",
            "{case}"
        );
    }
}

/// Puts a link into the image in place of what is there.
fn plant(scratch: &Scratch, at: &str, target: &str) {
    let path = scratch.image().join(at);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    if path.is_dir() && !path.is_symlink() {
        std::fs::remove_dir_all(&path).unwrap();
    }
    symlink(target, path).unwrap();
}

#[test]
fn a2_a_working_directory_outside_is_refused() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("a2");
    plant(&scratch, "link", "/proc/self/fd/7");
    for number in (3..40).chain([1023]) {
        let cwd = format!("/proc/self/fd/{number}");
        assert!(
            scratch
                .try_run(&set(&spec(), "/process/cwd", json!(cwd)))
                .is_err(),
            "{cwd}"
        );
    }
    for cwd in [
        "/link",
        "/link/x",
        "/proc/self/cwd",
        "/proc/1/root",
        "/proc/self/fd/7/../../..",
    ] {
        assert!(
            scratch
                .try_run(&set(&spec(), "/process/cwd", json!(cwd)))
                .is_err(),
            "{cwd}"
        );
    }
}

#[test]
fn a4_a_null_device_of_the_images_is_not_the_mask() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("a4");
    let canary = Canary::new(&scratch);
    plant(&scratch, "dev/null", "/proc/sys/kernel/core_pattern");
    let before = std::fs::read("/proc/sys/kernel/core_pattern").unwrap();
    let script = "stat -c %t:%T /proc/keys /dev/null; echo x > /proc/keys; cat /proc/keys";
    assert_eq!(scratch.shell(&spec(), script), "1:3\n1:3\n");
    // Without a /dev of its own, the nodes would be made over the image's link: refused.
    let mut bare = spec();
    bare["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    let error = scratch.try_run(&bare).unwrap_err().to_string();
    assert!(error.contains("/dev/null"), "{error}");
    assert_eq!(
        std::fs::read("/proc/sys/kernel/core_pattern").unwrap(),
        before
    );
    canary.check("a4");
}

#[test]
fn a5_console_and_pts_as_links_are_harmless() {
    if !ready() {
        return;
    }
    for target in [
        "/proc/sys/kernel/core_pattern",
        "../../../../etc",
        "/nowhere",
    ] {
        for at in ["dev/console", "dev/ptmx", "dev/pts"] {
            let scratch = Scratch::new(&format!("a5-{}", at.replace('/', "-")));
            let canary = Canary::new(&scratch);
            plant(&scratch, at, target);
            let spec = set(
                &with_script(&spec(), "test -c /dev/console"),
                "/process/terminal",
                json!(true),
            );
            let launched = scratch
                .launch(&spec, bulkhead_runtime::launch::Stdio::Terminal)
                .unwrap();
            assert_eq!(
                crate::rig::wait(&launched),
                0,
                "{at} → {target}: the image's /dev is covered"
            );
            canary.check(at);
        }
    }
}

#[test]
fn a6_a_faked_proc_is_not_written_to() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("a6");
    std::fs::create_dir_all(scratch.image().join("proc/sys/net/ipv4")).unwrap();
    std::fs::write(scratch.image().join("proc/sys/net/ipv4/ip_forward"), "fake").unwrap();
    let spec = set(
        &spec(),
        "/linux/sysctl",
        json!({"net.ipv4.ip_forward": "1"}),
    );
    assert_eq!(
        scratch.shell(&spec, "cat /proc/sys/net/ipv4/ip_forward"),
        "1\n"
    );
    // Also without a /proc in the container: a private one is used.
    let mut bare = spec.clone();
    bare["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| mount["destination"] != "/proc");
    bare["linux"]["maskedPaths"] = json!([]);
    bare["linux"]["readonlyPaths"] = json!([]);
    assert_eq!(
        scratch.shell(&bare, "cat /proc/sys/net/ipv4/ip_forward"),
        "fake"
    );
    assert!(
        !scratch.upper().join("proc").exists(),
        "the image's file was left alone"
    );
}

#[test]
fn a7_proc_sys_and_dev_must_be_real_directories() {
    if !ready() {
        return;
    }
    for at in ["proc", "sys", "dev"] {
        for target in [
            "/tmp",
            "tmp",
            "../../../../tmp",
            "/dangling",
            "/proc/self/root",
            "self-loop",
        ] {
            let scratch = Scratch::new(&format!("a7-{at}"));
            let canary = Canary::new(&scratch);
            plant(
                &scratch,
                at,
                if target == "self-loop" { at } else { target },
            );
            let error = scratch.try_run(&spec()).unwrap_err().to_string();
            assert!(
                error.contains(&format!("on /{at}")),
                "{at} → {target}: {error}"
            );
            canary.check(at);
        }
    }
}

#[test]
fn b1_parents_as_links_stay_inside() {
    if !ready() {
        return;
    }
    for (name, target) in [("absolute", true), ("relative", false)] {
        let scratch = Scratch::new(&format!("b1-{name}"));
        let canary = Canary::new(&scratch);
        let out = scratch.path.join("canary");
        let target = if target {
            out.display().to_string()
        } else {
            format!("../../../../../../../../{}", out.display())
        };
        plant(&scratch, "a", &target);
        plant(&scratch, "etc/hosts", &format!("{target}/hosts"));
        plant(&scratch, "w", &target);
        let spec = ["/a/b/c", "/etc/hosts"].iter().fold(spec(), |spec, at| {
            let source = if at.ends_with("hosts") {
                scratch.path.join("lower/etc/passwd")
            } else {
                scratch.volume()
            };
            with_mount(
                &spec,
                json!({"destination": at, "source": source, "options": ["rbind"]}),
            )
        });
        let spec = set(&spec, "/process/cwd", json!("/w/d"));
        assert_eq!(
            scratch.shell(&spec, "test -d /a/b/c && test -s /etc/hosts && echo in"),
            "in\n"
        );
        canary.check(name);
    }
    let scratch = Scratch::new("b1-loop");
    plant(&scratch, "a", "b");
    plant(&scratch, "b", "a");
    let mount = json!({"destination": "/a/x", "source": scratch.volume(), "options": ["rbind"]});
    assert!(scratch.try_run(&with_mount(&spec(), mount)).is_err());
}

#[test]
fn c3_nothing_is_mounted_over_proc_the_masks_or_the_root() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("c3");
    for (at, target) in [
        ("p", "/proc"),
        ("s", "proc/sys"),
        ("up", "../../proc"),
        ("r", "/"),
        ("d", "."),
        ("self", "/proc/self"),
    ] {
        plant(&scratch, at, target);
    }
    for destination in [
        "/proc",
        "//proc",
        "/proc/",
        "/./proc",
        "/proc/.",
        "/proc/sys",
        "/proc//sys",
        "/proc/self",
        "/proc/1",
        "/proc/self/attr",
        "/proc/sys/kernel",
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/irq",
        "/p",
        "/p/sys",
        "/p/self/attr",
        "/s",
        "/s/kernel",
        "/up",
        "/up/keys",
        "/r",
        "/r/proc",
        "/r/r/p",
        "/d",
        "/d/d/proc",
        "/self",
        "/self/attr",
        "/",
        "//",
        "/.",
        "/./",
        "/x/..",
        "/x/../proc",
        "/..",
        "/../proc",
        "/proc/../proc",
        "/p/meminfo",
        "relative",
    ] {
        for mount in [
            json!({"destination": destination, "source": scratch.volume(), "options": ["rbind"]}),
            json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"}),
        ] {
            let result = scratch.try_run(&with_mount(&spec(), mount));
            assert!(result.is_err(), "{destination}");
        }
    }
}

#[test]
fn c1_a_volume_whose_directory_is_swapped_for_a_link_never_leads_out() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("c1");
    let canary = Canary::new(&scratch);
    let volume = scratch.volume();
    std::fs::create_dir(volume.join("dir")).unwrap();
    symlink("/../../../../../../../proc", volume.join("link")).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, volume) = (stop.clone(), volume.clone());
        move || {
            let (dir, link) = (volume.join("dir"), volume.join("link"));
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                // Either order is as good.
                let _swapped =
                    rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &link, flags);
            }
        }
    });
    std::fs::write(scratch.image().join("etc/inner"), "").unwrap();
    let spec = with_mount(
        &spec(),
        json!({"destination": "/v", "source": volume, "options": ["rbind"]}),
    );
    let spec = with_mount(
        &spec,
        json!({"destination": "/v/dir/a", "type": "tmpfs", "source": "inner"}),
    );
    let mut started = 0;
    for _ in 0..100 {
        // Refused when the link was there, mounted inside when the directory was; nothing else.
        match scratch.try_run(&with_script(
            &spec,
            "grep ' inner ' /proc/self/mountinfo | cut -d' ' -f5",
        )) {
            Ok(output) => {
                let at = output.stdout.trim();
                assert!(at.is_empty() || at.starts_with("/v/"), "{output:?}");
                started += 1;
            }
            Err(error) => assert!(error.to_string().contains("/v/dir/a"), "{error}"),
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(started > 0);
    canary.check("c1");
}

#[test]
fn c5_read_only_is_read_only_and_recursive_if_asked() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("c5");
    let volume = scratch.volume();
    std::fs::create_dir(volume.join("sub")).unwrap();
    let proc = format!("mount -t tmpfs sub {}", volume.join("sub").display());
    // A volume with a file system below it, in a mount namespace of this thread alone.
    let check = std::thread::spawn(move || {
        use std::process::Command;
        rig_unshare();
        assert!(
            Command::new("sh")
                .args(["-c", &proc])
                .status()
                .unwrap()
                .success()
        );
        for (options, top, sub) in [
            (json!(["rbind"]), true, true),
            (json!(["rbind", "ro"]), false, true),
            (json!(["rbind", "rro"]), false, false),
        ] {
            let mount =
                json!({"destination": "/v", "source": scratch.volume(), "options": options});
            let script = "touch /v/x && echo top; touch /v/sub/x && echo sub; true";
            let output = scratch.run(&with_script(&with_mount(&spec(), mount.clone()), script));
            assert_eq!(
                (output.stdout.contains("top"), output.stdout.contains("sub")),
                (top, sub),
                "{mount}"
            );
        }
        assert!(
            Command::new("umount")
                .arg(scratch.volume().join("sub"))
                .status()
                .unwrap()
                .success()
        );
    });
    check.join().unwrap();
}

/// A mount namespace of the calling thread's own.
fn rig_unshare() {
    #[expect(
        unsafe_code,
        reason = "unshare of the file system context of one thread"
    )]
    // SAFETY: no descriptor table is unshared.
    unsafe {
        rustix::thread::unshare_unsafe(
            rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS,
        )
    }
    .unwrap();
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::REC | rustix::mount::MountPropagationFlags::PRIVATE,
    )
    .unwrap();
}

#[test]
fn c6_propagation_that_the_source_cannot_give_is_refused() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("c6");
    for options in [json!(["rbind", "rshared"]), json!(["rbind", "rslave"])] {
        let mount = json!({"destination": "/v", "source": scratch.volume(), "options": options});
        match scratch.try_run(&with_mount(&spec(), mount)) {
            Ok(_) => assert!(Path::new("/").exists(), "the node's root is shared"),
            Err(error) => assert!(error.to_string().contains("propagation"), "{error}"),
        }
    }
}

#[test]
fn e7_nothing_of_the_callers_leaks_in() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("e7");
    let (leak, _other) = rustix::pipe::pipe().unwrap(); // without close-on-exec
    let shown = scratch.shell(
        &spec(),
        "ls /proc/self/fd | wc -l; wc -c < /proc/$$/environ; umask",
    );
    assert_eq!(shown, "4\n14\n0022\n");
    drop(leak);
}
