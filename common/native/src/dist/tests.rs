use super::*;
use std::thread;
use tch::{Device, Kind};

/// Runs `action` as each of `size` ranks, in threads.
fn as_ranks(size: usize, action: impl Fn(&World) + Sync) {
    as_ranks_within(Duration::from_secs(60), size, action);
}

fn as_ranks_within(limit: Duration, size: usize, action: impl Fn(&World) + Sync) {
    let store = Store::local().unwrap();
    let place = Place { rank: 0, size, local: 0, host: "127.0.0.1".into(), port: store.port(), kept: true, restart: 0 };
    thread::scope(|scope| {
        for rank in 0..size {
            let (place, action) = (Place { rank, local: rank, ..place.clone() }, &action);
            scope.spawn(move || {
                let world = World::join(place, limit, |message| eprintln!("{message}")).unwrap();
                action(&world);
                world.leave().unwrap();
            });
        }
    });
}

/// Every collective on tensors of `device`.
fn collectives(world: &World, device: Device) {
    let (rank, size) = (world.rank() as i64, world.size() as i64);
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64] {
        let own = |n: i64| Tensor::arange(n, (kind, device)) + rank;
        let mut sum = own(5);
        world.all_reduce(&mut sum).unwrap();
        assert_eq!(sum, Tensor::arange(5, (kind, device)) * size + size * (size - 1) / 2);
        let all = world.all_gather(&own(6).view([2, 3])).unwrap();
        assert_eq!(all.size(), [size, 2, 3]);
        (0..size).for_each(|r| assert_eq!(all.get(r), (Tensor::arange(6, (kind, device)) + r).view([2, 3])));
        let mut from = own(4);
        world.broadcast(&mut from, size as usize - 1).unwrap();
        assert_eq!(from, Tensor::arange(4, (kind, device)) + (size - 1));
    }
    world.barrier().unwrap();
}

#[test]
fn collectives_on_the_cpu() {
    for size in [2, 3] {
        as_ranks(size, |world| collectives(world, Device::Cpu));
    }
}

#[test]
fn what_one_rank_posts_the_others_get() {
    as_ranks(3, |world| {
        if world.rank() == 1 {
            thread::sleep(Duration::from_millis(50));
            world.post("word", "täglich").unwrap();
        }
        assert_eq!(world.await_post("word").unwrap(), "täglich");
    });
}

#[test]
fn the_store_counts_and_keeps_the_first() {
    let store = Store::local().unwrap();
    assert_eq!(store.get("none").unwrap(), None);
    store.set_once("first", "a").unwrap();
    store.set_once("first", "b").unwrap();
    assert_eq!(store.get("first").unwrap().as_deref(), Some("a"));
    store.set("first", "c").unwrap();
    assert_eq!(store.get("first").unwrap().as_deref(), Some("c"));
    assert_eq!((store.add("n", 2).unwrap(), store.add("n", -1).unwrap()), (2, 1));
}

#[test]
fn a_store_that_is_not_there_is_an_error_on_one_line() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = Store::open("127.0.0.1", port, false, Duration::from_millis(200)).unwrap_err().to_string();
    assert!(error.contains(&port.to_string()) && error.lines().count() == 1, "{error}");
}

const HANGING: &str = "dist::tests::a_rank_that_hangs";

/// Ends its process: [`a_rank_that_hangs_is_named_though_it_beats`] starts it.
#[test]
#[ignore = "started by another test in a process of its own"]
fn a_rank_that_hangs() {
    as_ranks_within(Duration::from_secs(2), 2, |world| {
        world.barrier().unwrap();
        world.step();
        // Longer than the limit, but not a hang: rank 0 says that it is busy, and rank 1 waits.
        if world.rank() == 0 {
            world.busy();
            thread::sleep(Duration::from_secs(3));
            world.step();
        }
        world.barrier().unwrap();
        world.step();
        if world.rank() == 1 {
            eprintln!("hanging");
            thread::sleep(Duration::from_secs(60));
        }
        world.barrier().unwrap();
    });
}

#[test]
fn a_rank_that_hangs_is_named_though_it_beats() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", HANGING, "--ignored", "--nocapture"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let said: Vec<&str> = text.lines().skip_while(|line| *line != "hanging").collect();
    assert!(said.get(1).is_some_and(|line| line.starts_with("rank 1 hangs")), "{text}");
}

/// Without libtorch's CUDA half there is no NCCL, and without a GPU it has nothing to join; with both it works.
#[test]
fn nccl_says_what_is_missing() {
    let opened = crate::open_cuda();
    match NcclId::new() {
        Ok(id) => {
            opened.expect("NCCL comes with libtorch_cuda");
            assert_eq!(NcclId::from_hex(&id.to_hex()).unwrap().to_hex(), id.to_hex());
            if tch::Cuda::device_count() == 0 {
                let store = Store::local().unwrap();
                let group = Group::join(&store, "alone", (0, 1), "127.0.0.1", "", Duration::from_secs(10)).unwrap();
                let error = group.join_nccl(&id, 0, 0).unwrap_err().to_string();
                eprintln!("{error}");
                assert!(!error.is_empty() && error.lines().count() == 1);
            }
        }
        Err(error) => assert!(error.to_string().starts_with("ncclGetUniqueId not found: "), "{error}"),
    }
    assert!(NcclId::from_hex("00").is_none());
}

/// Run on a machine with at least two GPUs with `--features cuda-tests`.
#[cfg(feature = "cuda-tests")]
#[test]
fn collectives_on_cuda() {
    crate::open_cuda().unwrap();
    let count = tch::Cuda::device_count() as usize;
    assert!(count >= 2, "{count} GPUs found, expected at least 2");
    as_ranks(count, |world| {
        world.join_cuda(world.local()).unwrap();
        collectives(world, Device::Cuda(world.local()));
        collectives(world, Device::Cpu);
    });
}
