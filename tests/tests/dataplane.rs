//! The data plane's programs, loaded into the kernel and run on packets through
//! `BPF_PROG_TEST_RUN`.

#[test]
fn loads() {
    let obj = std::fs::read(std::env::var("OBJ").unwrap()).unwrap();
    let mut bpf = aya::EbpfLoader::new().map_max_entries("FLOWS", 1000).load(&obj).unwrap();
    for (name, p) in bpf.programs_mut() {
        let t = std::time::Instant::now();
        let r = match p {
            aya::programs::Program::Xdp(p) => p.load(),
            aya::programs::Program::SchedClassifier(p) => p.load(),
            _ => panic!(),
        };
        println!("{name} {:?}", t.elapsed());
        if let Err(e) = r {
            let s = format!("{e:?}").replace("\\n", "\n");
            println!("{}", &s[..s.len().min(3000)]);
            println!("....\n{}", &s[s.len().saturating_sub(6000)..]);
            panic!();
        }
        println!("{:?}", p.info().unwrap().verified_instruction_count());
    }
}
