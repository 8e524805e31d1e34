//! Owns the reading of the kernel's text: keys and columns. Every function takes what it is given and never fails: what
//! is not there counts as zero, as on a kernel without that counter.

use super::NetworkUsage;

/// The value of the line `key value`, as in `cpu.stat` and `memory.stat`.
pub(super) fn flat(text: &str, key: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

/// A file that is one number; `max` and v1's largest number both mean no limit: zero.
pub(super) fn number(text: &str) -> u64 {
    // v1 rounds 2⁶³ − 1 down to a page.
    const NO_LIMIT_LEAST: u64 = i64::MAX as u64 - 0xff_ffff;
    match text.trim().parse() {
        Ok(value) if value < NO_LIMIT_LEAST => value,
        _ => 0,
    }
}

/// Bytes read and written over all devices: v1 `8:0 Read 4096`, v2 `8:0 rbytes=4096 wbytes=0 …`.
pub(super) fn io_bytes(text: &str) -> (u64, u64) {
    let (mut read, mut written) = (0u64, 0u64);
    for line in text.lines() {
        let mut words = line.split_whitespace().skip(1).peekable();
        match words.peek() {
            Some(&"Read") => read += words.nth(1).map_or(0, number),
            Some(&"Write") => written += words.nth(1).map_or(0, number),
            _ => {
                for word in words {
                    match word.split_once('=') {
                        Some(("rbytes", value)) => read += number(value),
                        Some(("wbytes", value)) => written += number(value),
                        _ => {}
                    }
                }
            }
        }
    }
    (read, written)
}

/// µs that all CPUs together worked, from the first line of proc_stat(5), in ticks of 1/100 s: user, nice, system, irq
/// and softirq. Guests are in user; stolen time was somebody else's.
pub(super) fn host_cpu_usec(stat: &str) -> u64 {
    const USEC_PER_TICK: u64 = 10_000;
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let column = |wanted: usize| {
        let mut columns = line.unwrap_or_default().split_whitespace();
        columns.nth(wanted).map_or(0, number)
    };
    [0, 1, 2, 5, 6].map(column).iter().sum::<u64>() * USEC_PER_TICK
}

/// A line `Key:  123 kB` of proc_meminfo(5), in bytes.
pub(super) fn meminfo_bytes(meminfo: &str, key: &str) -> u64 {
    let line = |line: &str| {
        line.strip_prefix(key)?
            .strip_prefix(':')?
            .split_whitespace()
            .next()
            .map(number)
    };
    meminfo.lines().find_map(line).unwrap_or(0) * 1024
}

/// The one-minute load average, times 1000.
pub(super) fn load1_milli(loadavg: &str) -> u64 {
    let load: f64 = loadavg
        .split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0.0);
    (load * 1000.0).round() as u64
}

/// The links of proc_net_dev(5): name, and the counters as the *other* end of the link sees them.
pub(super) fn links(net_dev: &str) -> impl Iterator<Item = (&str, NetworkUsage)> {
    net_dev.lines().filter_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let mut columns = [0; 16];
        for (column, word) in columns.iter_mut().zip(counters.split_whitespace()) {
            *column = number(word);
        }
        // Receive: bytes packets errs drop fifo frame compressed multicast; transmit: bytes packets errs drop …
        let usage = NetworkUsage {
            tx_bytes: columns[0],
            tx_packets: columns[1],
            tx_dropped: columns[3],
            rx_bytes: columns[8],
            rx_packets: columns[9],
            rx_dropped: columns[11],
        };
        Some((name.trim(), usage))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_whole_word() {
        let stat = "cache 1\ntotal_inactive_file 77\ninactive_file 5\noom_kill_disable 9\noom_kill 2\n";
        assert_eq!(flat(stat, "inactive_file"), 5);
        assert_eq!(flat(stat, "total_inactive_file"), 77);
        assert_eq!(flat(stat, "oom_kill"), 2);
        assert_eq!(flat(stat, "absent"), 0);
    }

    #[test]
    fn no_limit_is_zero() {
        assert_eq!(number("67108864\n"), 67_108_864);
        for none in ["max\n", "9223372036854771712\n", "-1\n", ""] {
            assert_eq!(number(none), 0, "{none:?}");
        }
    }

    #[test]
    fn io_is_summed_over_devices_on_both_versions() {
        let v1 = "8:0 Read 4096\n8:0 Write 10\n8:0 Sync 1\n8:0 Total 4106\n9:0 Read 4\nTotal 4110\n";
        let v2 = "8:0 rbytes=4096 wbytes=10 rios=1 wios=2 dbytes=0 dios=0\n9:0 rbytes=4 wbytes=0\n";
        assert_eq!((io_bytes(v1), io_bytes(v2)), ((4100, 10), (4100, 10)));
        assert_eq!(io_bytes("Total 0\n"), (0, 0));
    }

    #[test]
    fn host_figures() {
        assert_eq!(
            host_cpu_usec("cpu  1 2 3 400 5 6 7 8 9 10\ncpu0 9 9 9\n"),
            190_000
        );
        assert_eq!(
            meminfo_bytes("MemTotal:  10 kB\nMemAvailable:   4 kB\n", "MemAvailable"),
            4096
        );
        assert_eq!(load1_milli("0.25 0.30 0.10 1/150 999\n"), 250);
    }

    #[test]
    fn what_the_host_received_the_task_sent() {
        let text = "Inter-| Receive | Transmit\n face |bytes\n  babcd01: 10 1 0 3 0 0 0 0 20 2 0 4 0 0 0 0\n";
        let (name, usage) = links(text).next().unwrap();
        assert_eq!(name, "babcd01");
        assert_eq!((usage.tx_bytes, usage.tx_packets, usage.tx_dropped), (10, 1, 3));
        assert_eq!((usage.rx_bytes, usage.rx_packets, usage.rx_dropped), (20, 2, 4));
    }
}
