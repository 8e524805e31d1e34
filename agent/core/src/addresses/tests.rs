use super::*;

const OWN: &str = "10.0.0.0/29";

fn task(n: u8) -> TaskId {
    format!("{n:032x}").parse().unwrap()
}

#[test]
fn addresses_are_used_in_turn_and_rest_after_use() {
    let mut pool = Addresses::new(OWN.parse::<Range>().unwrap());
    assert_eq!(pool.capacity(), 6);
    let given: Vec<_> = (0..6)
        .map(|n| pool.lease(&task(n), None, Millis(0)).unwrap().ipv4.octets()[3])
        .collect();
    assert_eq!(given, [1, 2, 3, 4, 5, 6]);
    assert_eq!(pool.lease(&task(9), None, Millis(0)), None, "all are held");
    assert_eq!(
        pool.lease(&task(3), None, Millis(0)).unwrap().ipv4.octets()[3],
        4,
        "asking again gives the same"
    );

    pool.release(&task(2), Millis(1_000));
    assert_eq!(
        pool.lease(&task(9), None, Millis(1_000 + QUARANTINE_MS - 1)),
        None,
        "it rests"
    );
    assert_eq!(
        pool.lease(&task(9), None, Millis(1_000 + QUARANTINE_MS))
            .unwrap()
            .ipv4
            .octets()[3],
        3
    );
}

#[test]
fn a_task_outside_a_changed_range_keeps_its_address_until_it_begins_anew() {
    let mut old = Addresses::new(OWN.parse::<Range>().unwrap());
    let first = old.lease(&task(1), None, Millis(0)).unwrap();
    let new_range: Range = "10.9.0.0/30".parse().unwrap();
    let mut pool = Addresses::new(new_range);
    pool.adopt(old);
    assert_eq!(pool.held_outside(&[new_range]), [first.ipv4]);
    assert_eq!(pool.lease(&task(1), None, Millis(0)), Some(first));
    let inside = Ipv4Addr::new(10, 9, 0, 1).into();
    assert_eq!(pool.begin_anew(&task(1), None, Millis(0)), Some(inside));
    assert_eq!(
        (pool.held_outside(&[new_range]), pool.next_expiry()),
        (vec![], Some(Millis(QUARANTINE_MS)))
    );
    assert_eq!(pool.begin_anew(&task(1), None, Millis(0)), None, "it is inside");
}

#[test]
fn a_range_too_small_has_no_address() {
    for range in ["10.0.0.0/31", "10.0.0.0/32"] {
        let mut pool = Addresses::new(range.parse::<Range>().unwrap());
        assert_eq!(
            (pool.capacity(), pool.lease(&task(1), None, Millis(0))),
            (0, None),
            "{range}"
        );
    }
}

fn subnet(n: u8) -> SubnetId {
    format!("subnet-{n:017x}").parse().unwrap()
}

fn ranges(of: &[(u8, &str)]) -> BTreeMap<SubnetId, Range> {
    of.iter()
        .map(|(n, range)| (subnet(*n), range.parse().unwrap()))
        .collect()
}

#[test]
fn an_address_is_of_the_subnet_that_is_asked_for_while_that_is_the_nodes() {
    let mut pool = Addresses::new(OWN.parse::<Range>().unwrap());
    let (one, two) = (subnet(1), subnet(2));
    assert_eq!(pool.lease(&task(1), Some(&one), Millis(0)), None, "not its part");
    assert!(pool.use_subnets(&ranges(&[(1, "10.64.1.0/30"), (2, "10.65.1.0/24")])));
    assert!(!pool.use_subnets(&ranges(&[(1, "10.64.1.0/30"), (2, "10.65.1.0/24")])));
    let mut lease = |n: u8, subnet: Option<&SubnetId>| {
        let address = pool.lease(&task(n), subnet, Millis(0));
        address.map(|address| address.ipv4.to_string())
    };
    assert_eq!(lease(1, Some(&one)).as_deref(), Some("10.64.1.1"));
    assert_eq!(lease(2, Some(&one)).as_deref(), Some("10.64.1.2"));
    assert_eq!(lease(3, Some(&one)), None, "all are held");
    assert_eq!(lease(3, Some(&two)).as_deref(), Some("10.65.1.1"));
    assert_eq!(lease(4, None).as_deref(), Some("10.0.0.1"));
    assert_eq!(pool.counts("10.64.1.0/30".parse().unwrap()), (2, 0));

    // Taken away: who has an address keeps it, nobody else gets one.
    assert!(pool.keep_subnets(&ranges(&[(2, "10.65.1.0/24"), (3, "10.66.1.0/24")])));
    assert_eq!(pool.range(Some(&one)), None);
    assert_eq!(pool.range(Some(&subnet(3))), None, "it was not looked at yet");
    assert_eq!(
        pool.lease(&task(1), Some(&one), Millis(0)),
        Some(Ipv4Addr::new(10, 64, 1, 1).into())
    );
    assert_eq!(pool.begin_anew(&task(1), Some(&one), Millis(0)), None);
    let used: Vec<Range> = pool.ranges().collect();
    assert_eq!(pool.held_outside(&used).len(), 2);
}

#[test]
fn an_address_rests_though_its_part_went_and_came_again_meanwhile() {
    let mut pool = Addresses::new(OWN.parse::<Range>().unwrap());
    let of = |pool: &mut Addresses, n: u8, subnet: SubnetId, now| {
        let address = pool.lease(&task(n), Some(&subnet), Millis(now));
        address.map(|address| address.ipv4.to_string())
    };
    pool.use_subnets(&ranges(&[(1, "10.64.1.0/30")]));
    assert_eq!(of(&mut pool, 1, subnet(1), 0).as_deref(), Some("10.64.1.1"));
    pool.release(&task(1), Millis(0));
    // The subnet is deleted, and the same range is another's.
    pool.use_subnets(&ranges(&[]));
    let stored = serde_json::to_string(&pool).unwrap();
    let mut pool: Addresses = serde_json::from_str(&stored).unwrap();
    pool.use_subnets(&ranges(&[(2, "10.64.1.0/30")]));
    assert_eq!(
        of(&mut pool, 2, subnet(2), QUARANTINE_MS - 1).as_deref(),
        Some("10.64.1.2")
    );
    assert_eq!(of(&mut pool, 3, subnet(2), QUARANTINE_MS - 1), None, "it rests");
    assert_eq!(
        of(&mut pool, 3, subnet(2), QUARANTINE_MS).as_deref(),
        Some("10.64.1.1")
    );
}

#[test]
fn a_lease_says_of_which_boot_it_is_and_an_earlier_versions_is_read() {
    let held = format!(
        r#"{{"range":"10.0.0.0/29","leases":{{"10.0.0.1":{{"Held":"{}"}}}},"next":2}}"#,
        task(1)
    );
    let earlier: Addresses = serde_json::from_str(&held).unwrap();
    let mut pool = Addresses::new(OWN.parse::<Range>().unwrap());
    pool.on_boot("first");
    pool.adopt(earlier);
    assert_eq!(
        pool.lease(&task(1), None, Millis(0)),
        Some(Ipv4Addr::new(10, 0, 0, 1).into())
    );
    assert_eq!(pool.of_earlier_boots(), [], "its boot is not known");
    pool.lease(&task(2), None, Millis(0));
    let stored = serde_json::to_string(&pool).unwrap();
    let mut pool: Addresses = serde_json::from_str(&stored).unwrap();
    pool.on_boot("second");
    assert_eq!(pool.of_earlier_boots(), [task(2)]);
    assert_eq!(
        pool.begin_anew(&task(2), None, Millis(0)),
        None,
        "it keeps its address"
    );
    assert_eq!(pool.of_earlier_boots(), []);
}

#[test]
fn containers_of_a_task_have_addresses_of_their_own_which_end_together() {
    let range: Ipv4Net = OWN.parse().unwrap();
    let mut pool = Addresses::new(range);
    let [a, b] = [1, 2].map(|n| format!("{n:032x}").parse::<ContainerId>().unwrap());
    let one = pool.lease_for(&task(1), &a, Millis(0)).unwrap();
    let two = pool.lease_for(&task(1), &b, Millis(0)).unwrap();
    assert_ne!(one, two);
    assert_eq!(pool.lease_for(&task(1), &a, Millis(0)), Some(one));
    let stored = serde_json::to_string(&pool).unwrap();
    let mut pool: Addresses = serde_json::from_str(&stored).unwrap();
    assert_eq!(pool.lease_for(&task(1), &b, Millis(0)), Some(two));
    assert_eq!(pool.counts(range), (2, 0));
    assert_eq!(pool.release(&task(1), Millis(0)), Some(Millis(QUARANTINE_MS)));
    assert_eq!(
        (pool.counts(range), pool.release(&task(1), Millis(9))),
        ((0, 2), None)
    );
}

#[test]
fn a_lease_is_of_an_ipv6_address_as_well_and_keeps_it_until_the_task_begins_anew() {
    let range = |prefix: Option<&str>| {
        let prefix = prefix.map(|prefix| prefix.parse().unwrap());
        Range::below(OWN.parse().unwrap(), prefix).unwrap()
    };
    let mut pool = Addresses::new(range(Some("fd00:1::/64")));
    let first = pool.lease(&task(1), None, Millis(0)).unwrap();
    let ipv6 = |address: Address| address.ipv6.map(|ipv6| ipv6.to_string());
    assert_eq!(ipv6(first).as_deref(), Some("fd00:1::a00:1"));
    let stored: Addresses = serde_json::from_str(&serde_json::to_string(&pool).unwrap()).unwrap();
    assert_eq!(stored, pool);

    // The prefix is another one now: the address is the task's as long as it runs.
    let mut pool = Addresses::new(range(Some("fd00:2::/64")));
    pool.adopt(stored);
    assert_eq!(pool.lease(&task(1), None, Millis(0)), Some(first));
    let outside = pool.held_outside(&pool.ranges().collect::<Vec<_>>());
    assert_eq!(outside, [IpAddr::from(first.ipv6.unwrap())]);
    let new = pool.begin_anew(&task(1), None, Millis(0)).unwrap();
    assert_eq!(
        (new.ipv4, ipv6(new).as_deref()),
        (first.ipv4, Some("fd00:2::a00:1"))
    );
    assert_eq!(pool.begin_anew(&task(1), None, Millis(0)), None);
    assert!(pool.held_outside(&pool.ranges().collect::<Vec<_>>()).is_empty());

    let mut pool = Addresses::new(range(None));
    assert_eq!(pool.lease(&task(1), None, Millis(0)).and_then(ipv6), None);
}
