//! A small static program for the test images: what busybox cannot show.
//!
//! It uses the standard library alone, because the image builder compiles it with plain `rustc`
//! (static, so that it runs in an image with nothing else). Its first argument, or else the name
//! it is called by, picks the applet; `pgrep` and `nonewprivs` stand in images under those names.

#![expect(
    clippy::print_stdout,
    reason = "a command-line program for inside containers"
)]
#![expect(clippy::exit, reason = "ends with the code it was told")]
#![expect(
    unsafe_code,
    reason = "a raw system call is what some of its callers want"
)]

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};
use std::{env, fs, io, process, thread};

fn main() -> process::ExitCode {
    let mut words: Vec<String> = env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let called = words
        .first()
        .map(|name| name.rsplit('/').next().unwrap_or(name).to_owned());
    let applet = match called.as_deref() {
        Some("probe" | "pause") if words.len() > 1 => {
            words.remove(0);
            words[0].clone()
        }
        Some(name) => name.to_owned(),
        None => String::new(),
    };
    let rest = words.get(1..).unwrap_or_default();
    let done = match applet.as_str() {
        "pgrep" => return pgrep(rest),
        "nonewprivs" => effective_uid().map(|uid| println!("Effective uid: {uid}")),
        "environ" => raw_environment(),
        "status" => fs::read_to_string("/proc/self/status").map(|text| print!("{text}")),
        "cat" => rest
            .iter()
            .try_for_each(|path| io::stdout().write_all(&fs::read(path)?)),
        "args" => {
            println!("{}", rest.join("\n"));
            Ok(())
        }
        "write" => write_bytes(rest),
        "heartbeat" => heartbeat(rest),
        "echo" => echo(rest),
        "flood" => flood(rest),
        "bind" => bind(rest),
        "call" => call(rest),
        "eat" => eat(rest),
        "true" => Ok(()),
        "sleep" => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        other => Err(io::Error::other(format!("no applet {other:?}"))),
    };
    match done {
        Ok(()) => process::ExitCode::SUCCESS,
        Err(error) => {
            println!("probe {applet}: {error}");
            process::ExitCode::FAILURE
        }
    }
}

/// `bind PORT`: takes a TCP port and lets it go.
fn bind(words: &[String]) -> io::Result<()> {
    let port = words.first().and_then(|word| word.parse::<u16>().ok());
    let port = port.ok_or_else(|| io::Error::other("usage: bind PORT"))?;
    TcpListener::bind(("127.0.0.1", port)).map(|_| println!("bound"))
}

unsafe extern "C" {
    fn syscall(number: std::ffi::c_long, ...) -> std::ffi::c_long;
}

/// `call NUMBER…`: makes each system call with six arguments of 0 and prints its errno, 0 if none.
fn call(words: &[String]) -> io::Result<()> {
    for word in words {
        let number: std::ffi::c_long = word.parse().map_err(io::Error::other)?;
        // SAFETY: the caller chooses calls that do nothing of consequence with null pointers and
        // descriptor 0; whatever the kernel does, this process has nothing to lose.
        let result = unsafe { syscall(number, 0_u64, 0_u64, 0_u64, 0_u64, 0_u64, 0_u64) };
        let errno = match result {
            -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0),
            _ => 0,
        };
        println!("{number} {errno}");
    }
    Ok(())
}

/// `eat MEGABYTES`: touches so much memory, and ends.
fn eat(words: &[String]) -> io::Result<()> {
    let megabytes = words.first().and_then(|word| word.parse::<usize>().ok());
    let megabytes = megabytes.ok_or_else(|| io::Error::other("usage: eat MEGABYTES"))?;
    let eaten = vec![1_u8; megabytes << 20];
    println!("{}", std::hint::black_box(&eaten).len());
    Ok(())
}

/// Prints the pids whose name holds the pattern, as procps does.
fn pgrep(patterns: &[String]) -> process::ExitCode {
    let Some(pattern) = patterns.last() else {
        return process::ExitCode::from(2);
    };
    let own = process::id().to_string();
    let mut found = false;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.contains(pattern.as_str()) {
            println!("{pid}");
            found = true;
        }
    }
    process::ExitCode::from(u8::from(!found))
}

/// The second number of `Uid:` in status (proc(5): real, effective, saved, file system).
fn effective_uid() -> io::Result<String> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = line.and_then(|line| line.split_whitespace().nth(1));
    uid.map(str::to_owned)
        .ok_or_else(|| io::Error::other("no Uid in /proc/self/status"))
}

/// One entry a line, exactly as the kernel holds them, assignments or not.
fn raw_environment() -> io::Result<()> {
    let bytes = fs::read("/proc/self/environ")?;
    let mut out = io::stdout().lock();
    for entry in bytes
        .split(|byte| *byte == 0)
        .filter(|entry| !entry.is_empty())
    {
        out.write_all(entry)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// `write out|err HEX [TIMES]`: these bytes, that often, in one stream.
fn write_bytes(words: &[String]) -> io::Result<()> {
    let [stream, hex, times @ ..] = words else {
        return Err(io::Error::other("usage: write out|err HEX [TIMES]"));
    };
    let times: usize = times
        .first()
        .map_or(Ok(1), |text| text.parse())
        .map_err(io::Error::other)?;
    let unit: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16))
        .collect::<Result<_, _>>()
        .map_err(io::Error::other)?;
    let all = unit.repeat(times);
    match stream.as_str() {
        "err" => io::stderr().write_all(&all),
        _ => io::stdout()
            .write_all(&all)
            .and_then(|()| io::stdout().flush()),
    }
}

/// `echo ADDRESS:PORT…`: gives every connection its bytes back, until its end is half closed.
fn echo(addresses: &[String]) -> io::Result<()> {
    let listeners = addresses
        .iter()
        .map(TcpListener::bind)
        .collect::<io::Result<Vec<_>>>()?;
    println!("listening");
    let servers: Vec<_> = listeners
        .into_iter()
        .map(|listener| thread::spawn(move || accept(&listener)))
        .collect();
    for server in servers {
        server
            .join()
            .map_err(|_| io::Error::other("a server panicked"))??;
    }
    Ok(())
}

fn accept(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        // A client that resets its connection is the test's business.
        thread::spawn(move || io::copy(&mut &stream, &mut &stream).is_ok());
    }
}

/// `flood FILE LINES`: waits until FILE is there, then writes that many numbered lines of a hundred
/// bytes, four megabytes a second, and into FILE how many milliseconds one write took at most.
fn flood(words: &[String]) -> io::Result<()> {
    let [file, lines] = words else {
        return Err(io::Error::other("usage: flood FILE LINES"));
    };
    let lines: u64 = lines.parse().map_err(io::Error::other)?;
    println!("ready");
    while !fs::exists(file)? {
        thread::sleep(Duration::from_millis(5));
    }
    let (begin, mut worst) = (Instant::now(), Duration::ZERO);
    let mut out = io::stdout().lock();
    for line in 0..lines {
        thread::sleep(Duration::from_micros(25 * line).saturating_sub(begin.elapsed()));
        let before = Instant::now();
        out.write_all(format!("{line:099}\n").as_bytes())?;
        worst = worst.max(before.elapsed());
    }
    out.flush()?;
    fs::write(file, worst.as_millis().to_string())
}

/// `heartbeat FILE SECONDS LINES_PER_SECOND CODE`: numbered lines to stdout, and into FILE the
/// longest time in milliseconds that one line took to be accepted; ends with the exit code.
fn heartbeat(words: &[String]) -> io::Result<()> {
    let [file, seconds, rate, code] = words else {
        return Err(io::Error::other(
            "usage: heartbeat FILE SECONDS LINES_PER_SECOND CODE",
        ));
    };
    let number = |text: &String| text.parse::<u64>().map_err(io::Error::other);
    let (seconds, rate, code) = (number(seconds)?, number(rate)?, number(code)?);
    let filler = "x".repeat(1000);
    let (begin, mut worst) = (Instant::now(), Duration::ZERO);
    let mut out = io::stdout().lock();
    for line in 0..seconds * rate {
        let due = Duration::from_nanos(line * 1_000_000_000 / rate);
        thread::sleep(due.saturating_sub(begin.elapsed()));
        let before = Instant::now();
        out.write_all(format!("{line} {filler}\n").as_bytes())?;
        worst = worst.max(before.elapsed());
    }
    out.flush()?;
    fs::write(file, worst.as_millis().to_string())?;
    process::exit(i32::try_from(code).unwrap_or(1))
}
