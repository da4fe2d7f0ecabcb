from cosyjit.cli import main

main()
