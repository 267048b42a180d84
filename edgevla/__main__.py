from edgevla.cli import main

raise SystemExit(main())
